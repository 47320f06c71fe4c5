"""Thousands of ways to ask about a screen, put together from short lists: what training hears.

Few whole sentences teach sentences; many parts in many orders teach the words. What is held out
(:mod:`autoglm.training.scenes.asking`) never comes out of here, but for longer sentences that contain it.

    >>> compose(random.Random(1), "tap", "en")
    'please locate "{}"'
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence

from autoglm.training.intents import plain_form

# A form is a sentence with slots in angle brackets, each filled from the list of that name; "{}" is the name
# or the place that is asked for. What stands twice is drawn twice as often.
_Forms = Mapping[str, tuple[str, ...]]

_TAP_ZH: _Forms = {
    "": (
        *("<ask><verb><what><end>",) * 6,
        *(
            "<ask>把<what><do><end>",
            "<ask><find><what><end>",
            "<ask><find><what>,<then><end>",
            "<what><where>",
            "<what><where>",
            "<wonder><what><where>",
        ),
    ),
    "ask": (
        *("", "", "", "", "请", "请你", "帮我", "麻烦", "麻烦你", "请帮我", "帮忙", "我要", "我想", "我想要"),
        *("现在", "接着", "然后", "替我", "给我", "你来", "可以", "快", "再", "先"),
    ),
    "verb": (
        *("点击", "点击", "点", "点一下", "点开", "按", "按一下", "按下", "轻触", "轻点", "触碰", "单击"),
        *("选", "选择", "选中", "点选", "戳一下", "进入", "进到", "触摸", "摸一下", "去点", "点到", "点进"),
    ),
    "what": (
        *("{}", "{}", "{}", "{}", "屏幕上的{}", "界面上的{}", "画面里的{}", "页面上的{}", "「{}」"),
        *('"{}"', "“{}”", "{}按钮", "{}这个按钮", "{}选项", "{}这一项", "那个{}", "叫{}的按钮", "{}那里"),
        *("写着{}的地方", "标着{}的按钮", "【{}】", "这个{}"),
    ),
    "do": ("点一下", "点开", "按一下", "按下去", "打开", "选上", "点了", "选中"),
    "find": ("找", "找到", "找出", "找一下", "定位", "指出", "指一下", "看看哪里是", "看准"),
    "then": ("点它", "点击它", "点一下", "按一下", "点开", "然后点击", "再点进去", "轻触"),
    "where": (
        *("在哪", "在哪儿", "在什么地方", "在屏幕的哪里", "在屏幕什么位置", "的位置", "的位置在哪里"),
        *("在哪个位置", "要点哪里", "在哪一块", "的坐标是多少", "在哪边", "位于哪里", "在哪呢", "在哪儿呀"),
        *("放在哪里了", "究竟在哪", "藏在哪里", "在这一屏的哪里", "在页面的哪里", "得点哪里"),
        *("在哪一行", "在哪个角落", "应该点哪里", "在什么位置"),
    ),
    "wonder": ("请问", "我想知道", "告诉我", "想问一下", "你知道", "说说"),
    "end": ("", "", "", "", "吧", "。", "!", ",谢谢", ",多谢", "好吗"),
}
_TAP_EN: _Forms = {
    "": (
        *("<ask><verb> <what><end>",) * 6,
        *("<ask><find> <what><end>", "<ask><find> <what> and <then><end>", "where <where>", "where <where>"),
    ),
    "ask": (
        *("", "", "", "", "please ", "can you ", "could you ", "would you ", "could you please ", "now "),
        *("i want to ", "i would like to ", "i'd like to ", "just ", "then ", "go ahead and ", "help me "),
        *("let us ", "kindly ", "i need to ", "next, "),
    ),
    "verb": (
        *("tap", "tap", "tap on", "click", "click on", "press", "touch", "hit", "select", "choose", "push"),
        *("pick", "press on", "tap once on", "activate", "go for", "move to", "go into", "single tap"),
    ),
    "what": (
        *("{}", "{}", "{}", "{}", "the {}", '"{}"', "'{}'", "the {} button", "the button {}", "the {} item"),
        *("{} on the screen", "{} here", "the one that says {}", "the option {}", "the {} option"),
        *("the word {}", "{} on this page", "the {} entry", "the place where it says {}"),
    ),
    "find": ("find", "locate", "look for", "search for", "point to", "show me", "point out", "spot"),
    "then": ("tap it", "click it", "press it", "tap on it", "touch it", "select it", "open it", "hit it"),
    "where": (
        *("can i find <what>", "do i see <what>", "on the screen is <what>", "should i tap for <what>"),
        *("does it say {}", "must i press for {}", "would i find {}", "exactly is <what>", "do i tap for {}"),
        *("is the {} button", "is the place of {}", "on this page is {}", "can i tap {}", "do you see {}"),
    ),
    "end": ("", "", "", ".", " please", "!", " now", " for me", ", thanks"),
}
_READ_ZH: _Forms = {
    "": ("<where><what><end>",) * 4 + ("<tell><where><thing><stop>", "<tell><where><what><end>"),
    "where": (
        *("{}", "{}处", "{}这里", "{}那里", "{}这个位置", "{}的位置", "{}这个点", "坐标{}", "坐标{}处"),
        *("坐标是{}的地方", "位置{}", "点{}", "屏幕{}处", "屏幕上{}", "屏幕上{}这个地方", "{}这一点", "{}上"),
    ),
    "what": (
        *("是什么", "有什么", "写着什么", "写的是什么", "写了什么", "显示什么", "显示的是什么", "是什么字"),
        *("的文字是什么", "的内容是什么", "是哪个按钮", "是什么文字", "的字是什么", "叫什么", "标着什么"),
        *("是啥", "有什么字", "看到的是什么", "是哪一项", "对应什么", "放着什么"),
    ),
    "tell": (
        "告诉我",
        "读出",
        "读",
        "念出",
        "念一下",
        "看一下",
        "看看",
        "说出",
        "识别",
        "说说",
        "请读出",
        "请看",
    ),
    "thing": ("", "的文字", "的内容", "的字", "的标签", "的名字", "写的字"),
    "end": ("", "", "?", "?", "呢", "呀"),
    "stop": ("", "", "。", "吧"),
}
_READ_EN: _Forms = {
    "": (
        *("<what> at <where><end>",) * 4,
        *("<read> <where>", "what does <where> say<end>", "what does the screen show at <where><end>"),
    ),
    "what": (
        *("what is", "what is", "what's", "what is there", "what text is", "which text is", "which word is"),
        *("what do you see", "what can you see", "what is written", "what does it say", "what is displayed"),
        *(
            "which button is",
            "which item is",
            "what label is",
            "what stands",
            "what do i see",
            "what appears",
        ),
        *("what can one see", "tell me what you see", "tell me what stands", "say what is", "which name is"),
    ),
    "read": (
        *("read", "read out", "read the label at", "read what is at", "tell me the text at", "identify"),
        *("name the item at", "give me the label at", "say the word at", "look at", "the text at"),
        *("the label at", "name what is at", "describe", "what about", "recognise"),
    ),
    "where": (
        *("{}", "{}", "{}", "{}", "position {}", "point {}", "the point {}", "coordinates {}", "place {}"),
        *("the coordinates {}", "the position {}", "location {}", "the place {}", "the spot {}", "{} here"),
    ),
    "end": ("", "", "?", "?", " please?", " on the screen", " on the screen?"),
}
_HAS_ZH: _Forms = {
    "": (
        *("<look><where><any><what>",) * 2,
        *("<look><where><have><what><ask>",) * 3,
        *("<what><be><where>吗?", "<what>在不在<where>", "你<saw><what>了吗", "<look><where><any><what>?"),
        *("<what><be><where><ask>",),
    ),
    "look": (
        *(
            "",
            "",
            "",
            "",
            "",
            "请问",
            "看看",
            "看一下",
            "帮我看看",
            "检查一下",
            "找一找",
            "你说",
            "瞧瞧",
            "现在",
        ),
    ),
    "where": (
        *("", "屏幕上", "屏幕上", "屏幕里", "界面上", "界面里", "画面上", "画面里", "这里", "页面上", "图里"),
        *("这个页面上", "当前页面", "图上", "图片里", "这一屏", "这个界面", "屏幕中", "眼前", "这张图里"),
    ),
    "any": (
        *(
            "有没有",
            "有没有",
            "是否有",
            "是不是有",
            "能不能看到",
            "有无",
            "能否看到",
            "能不能找到",
            "有没有出现",
        ),
        *("是否出现", "是否显示", "是否看得到", "有没有显示", "是否存在", "是不是存在"),
    ),
    "have": (
        *("有", "有", "有", "存在", "能看到", "看得到", "看得见", "可以看到", "能找到", "找得到", "能看见"),
        *("出现", "显示", "看得出", "你看得到", "你能看到", "你看得见", "包含", "会有"),
    ),
    "be": ("在", "出现在", "显示在", "是在", "能在"),
    "saw": ("看到", "看见", "找到", "见到"),
    "what": ("{}", "{}", "{}", "{}", "「{}」", '"{}"', "“{}”", "{}按钮", "{}这一项", "写着{}的按钮"),
    "ask": ("吗", "吗?", "吗", "吗?", "呢?", "么", "么?"),
}
_HAS_EN: _Forms = {
    "": (
        *("<is> <what> <where><end>",) * 3,
        *("<see> <what><end>", "<see> <what> <where><end>", "<see> <what> <where><end>"),
        *("does <screen> <show> <what><end>", "does <screen> <show> <what><end>", "does <what> <come><end>"),
        *("<check> <what> is <where>", "can <what> be <seen> <where><end>", "is <what> <seen><end>"),
    ),
    "is": ("is", "is", "is there", "is there", "is the word", "is the label", "is something called"),
    "what": ("{}", "{}", "{}", "{}", '"{}"', "'{}'", "the {} button", "a {} button", "the label {}", "a {}"),
    "where": (
        *(
            "on the screen",
            "on the screen",
            "on this screen",
            "on this page",
            "here",
            "there",
            "in the picture",
        ),
        *(
            "on the display",
            "in view",
            "anywhere",
            "somewhere here",
            "in this image",
            "anywhere on the screen",
        ),
    ),
    "see": (
        *("do you see", "can you find", "could you see", "are you able to see", "can you spot", "do i see"),
        *("did you see", "can i see", "can one see", "do you find", "will i see", "can you make out"),
        *("have you seen", "could you find", "can we see", "do we have", "do we see"),
    ),
    "screen": ("the screen", "this screen", "this page", "it", "the page", "the picture", "the display"),
    "show": ("have", "contain", "show", "include", "display", "say", "offer", "mention"),
    "come": (
        *("show up", "show up here", "appear here", "appear on this page", "appear anywhere", "stand here"),
        *("appear in the picture", "come up", "exist here", "show on the screen", "occur on the screen"),
    ),
    "seen": ("seen", "found", "displayed", "visible", "present", "shown", "there"),
    "check": ("check if", "check whether", "tell me if", "see whether", "look whether", "say if"),
    "end": ("", "", "?", "?", "?"),
}
_OPEN_ZH: _Forms = {
    "": ("<ask><verb>{}<end>",) * 5
    + ("<ask>把{}<do>", "<ask><verb>{}看看", "<ask><verb>{}应用", "{},<verb>它"),
    "ask": (
        *(
            "",
            "",
            "",
            "",
            "请",
            "帮我",
            "请帮我",
            "麻烦",
            "我想",
            "我要",
            "现在",
            "替我",
            "给我",
            "帮忙",
            "先",
        ),
        *("请你", "然后", "接下来", "麻烦帮我", "能不能", "你来"),
    ),
    "verb": (
        "打开",
        "打开",
        "进入",
        "启动",
        "用",
        "用一下",
        "去",
        "进",
        "点开",
        "切到",
        "打开一下",
        "运行",
        "看",
    ),
    "do": ("打开", "启动", "点开", "打开一下", "开起来", "启动起来"),
    "end": ("", "", "", "吧", "。", "!", "一下", ",谢谢"),
}
_OPEN_EN: _Forms = {
    "": ("<ask><verb> {}<end>",) * 5 + ("<ask><verb> the {} app<end>", "<ask><verb> {} and have a look"),
    "ask": (
        *("", "", "", "", "please ", "can you ", "could you ", "i want to ", "i would like to ", "now "),
        *("i need to ", "then ", "help me ", "kindly ", "next, ", "just "),
    ),
    "verb": (
        *("open", "open", "start", "launch", "go to", "use", "enter", "bring up", "open up", "switch to"),
        *("run", "take me to", "get into", "move to", "show"),
    ),
    "end": ("", "", "", ".", "!", " please", " now", " for me", ", thanks"),
}
FORMS: Mapping[tuple[str, str], _Forms] = {
    ("tap", "zh"): _TAP_ZH, ("tap", "en"): _TAP_EN, ("read", "zh"): _READ_ZH, ("read", "en"): _READ_EN,
    ("has", "zh"): _HAS_ZH, ("has", "en"): _HAS_EN, ("open", "zh"): _OPEN_ZH, ("open", "en"): _OPEN_EN,
}  # fmt: skip


def compose(rng: random.Random, kind: str, language: str, held_out: Sequence[str] = ()) -> str:
    """Put a question together; "{}" stands for what is asked for.

    Args:
        rng: source of all randomness.
        kind: ``tap``, ``read``, ``has`` or ``open``.
        language: ``zh`` or ``en``.
        held_out: wordings that must not come out, compared by their letters.
    """
    forms = FORMS[kind, language]
    forbidden = _letters_of(tuple(held_out))
    while True:
        text = _filled(rng, forms, rng.choice(forms[""]))
        if _letters(text) not in forbidden:
            return text


def _filled(rng: random.Random, forms: _Forms, text: str) -> str:
    """Fill every slot, those of what is filled in too."""
    before, found, rest = text.partition("<")
    if not found:
        return text
    name, _, after = rest.partition(">")
    return before + _filled(rng, forms, rng.choice(forms[name])) + _filled(rng, forms, after)


@functools.cache
def _letters_of(wordings: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_letters, wordings))


def _letters(wording: str) -> str:
    """Return what is left of a wording without marks, case, spaces and the commonest politeness."""
    return plain_form(wording.replace("{}", "0")).removeprefix("请").removeprefix("please")
