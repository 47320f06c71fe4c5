"""How people put things: what goes around a question, how they name an app to open, apps nobody taught.

Only data, the longer lists from ``commands.toml``, split into what is trained and what is held out. Lists
without a split of their own lose every fifth entry from the third on to the held-out set, so append at the
end and keep the order.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from autoglm.training.intents import Language


@dataclass(frozen=True)
class Wrapping:
    """What may stand before and after a wording, in training and held out of it.

    What stands twice is drawn twice as often; ``bare_suffixes`` end a wording that nothing stands before.
    """

    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    bare_suffixes: tuple[str, ...]
    held_out_prefixes: tuple[str, ...]
    held_out_suffixes: tuple[str, ...]


# By language and by whether the wording is an imperative ("introduce yourself").
WRAPPINGS: dict[tuple[Language, bool], Wrapping] = {
    ("zh", False): Wrapping(
        prefixes=(
            *("", "", "", "请问", "请问一下,", "你好,", "您好,", "嗨,", "嘿,", "喂,"),
            *("我想知道", "想问一下,", "请告诉我,", "告诉我,", "那么,", "那", "问一下,", "我问你,"),
            *("我有个问题,", "对了,", "抱歉,", "早上好,", "另外,", "话说,", "朋友,", "嗯,", "劳驾,"),
        ),
        suffixes=(
            *("", "", "?", "?", "?", "呢?", "呀?", "啊?", "呢", "。", "??", "~"),
            *("?多谢", "?谢谢你", ",多谢了", "?!?", "。。", "?麻烦了", "?感谢"),
        ),
        bare_suffixes=("", "?"),
        held_out_prefixes=("麻烦问一下,", "哈喽,", "打扰了,", "顺便问一句,", "不好意思,"),
        held_out_suffixes=("!?", "?谢谢", "...", "?!"),
    ),
    ("zh", True): Wrapping(
        prefixes=(
            "",
            "",
            "请",
            "请你",
            "你好,",
            "嗨,",
            "你好,请",
            "麻烦你",
            "那么,",
            "对了,",
            "抱歉,请",
            "劳驾",
        ),
        suffixes=("", "", "。", "!", "吧", "吧。", "~", ",多谢", ",谢谢你", "!!!", "。。", ",感谢"),
        bare_suffixes=("", "。"),
        held_out_prefixes=("哈喽,", "打扰了,", "麻烦", "不好意思,请"),
        held_out_suffixes=(",谢谢", "!!", "..."),
    ),
    ("en", False): Wrapping(
        prefixes=(
            *("", "", "", "hi, ", "hello, ", "hey, ", "so, ", "ok, ", "well, "),
            *("please tell me, ", "tell me, ", "excuse me, ", "I want to know, ", "I wonder, "),
            *("one question: ", "just asking, ", "good evening, ", "oh, ", "pardon me, ", "listen, "),
            *("by the by, ", "my question: ", "thanks, ", "and ", "dear assistant, "),
        ),
        suffixes=(
            *("", "", "?", "?", "?", " ?", "??", ".", " please?", "!"),
            *("? thank you", ", thank you", "? cheers", "?!?", "..", "? many thanks"),
        ),
        bare_suffixes=("", "?"),
        held_out_prefixes=("by the way, ", "quick question: ", "good day, ", "sorry, "),
        held_out_suffixes=("!?", "? thanks", "..."),
    ),
    ("en", True): Wrapping(
        prefixes=(
            *("", "", "please ", "hi, ", "hello, please ", "can you ", "could you ", "now "),
            *("will you ", "please do ", "oh, ", "so, ", "hey, please ", "good evening, "),
        ),
        suffixes=(
            *("", "", ".", "!", " please", " please.", "?"),
            *(", thank you", "! thank you", ". cheers", "..", ", many thanks"),
        ),
        bare_suffixes=("", "."),
        held_out_prefixes=("kindly ", "would you ", "hey, could you "),
        held_out_suffixes=("! thanks", "...", ", thanks"),
    ),
}
# For greetings, thanks and farewells, which nobody asks "please tell me" before.
PLAIN: dict[Language, Wrapping] = {
    "zh": Wrapping(
        prefixes=("",),
        suffixes=("", "", "!", "!", "。", "~"),
        bare_suffixes=("", "!"),
        held_out_prefixes=("",),
        held_out_suffixes=("!!", "...", "~~", " "),
    ),
    "en": Wrapping(
        prefixes=("",),
        suffixes=("", "", "!", ".", " !"),
        bare_suffixes=("", "!"),
        held_out_prefixes=("",),
        held_out_suffixes=("!!", "...", "~", " :)"),
    ),
}

_LISTS: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("commands.toml").read_text(encoding="utf-8")
)

# Commands. Both lists are trained, typed and by voice; scores by voice are of the first one's wordings alone.
COMMANDS: dict[tuple[Language, str], tuple[str, ...]] = {
    ("zh", "Launch"): (
        *("打开{}", "启动{}", "请帮我把{}打开", "帮我打开{}", "请打开{}", "运行{}", "把{}打开"),
        *("麻烦打开{}", "进入{}", "我想用{}", "我要打开{}", "打开一下{}", "给我打开{}", "帮我启动{}"),
        *("怎么打开{}", "打开{}应用", "我要用{}", "请帮忙启动{}", "启动一下{}", "请启动{}"),
    ),
    ("zh", "Close"): (
        *("关闭{}", "退出{}", "请帮我把{}关掉", "关掉{}", "帮我关闭{}", "请关闭{}", "把{}关掉"),
        *("麻烦关闭{}", "请退出{}", "关一下{}", "把{}关了", "帮我退出{}", "给我关闭{}", "帮我关掉{}"),
        *("怎么关闭{}", "关闭{}应用", "不用{}了,关掉", "请帮忙退出{}", "退出一下{}", "我要关闭{}"),
    ),
    ("en", "Launch"): (
        *("open {}", "start {}", "could you start {}", "launch {}", "please open {}", "run {}"),
        *("open {} please", "please launch {} now", "open the {} app", "start {} for me", "i want to use {}"),
        *("can you open {}", "open up {}", "start the {} app", "please start {}", "how do i open {}"),
        *("could you open {}", "would you start {}", "could you please launch {}", "would you open up {}"),
    ),
    ("en", "Close"): (
        *("close {}", "quit {}", "could you quit {}", "exit {}", "please close {}", "shut {}"),
        *("close {} please", "please exit {} now", "close the {} app", "quit {} for me", "i am done with {}"),
        *("can you close {}", "close down {}", "quit the {} app", "please quit {}", "how do i close {}"),
        *("could you close {}", "would you quit {}", "could you please exit {}", "would you close {}"),
    ),
}

TYPED_COMMANDS: dict[tuple[Language, str], tuple[str, ...]] = {
    ("zh", "Launch"): tuple(_LISTS["zh_launch"]),
    ("zh", "Close"): tuple(_LISTS["zh_close"]),
    ("en", "Launch"): tuple(_LISTS["en_launch"]),
    ("en", "Close"): tuple(_LISTS["en_close"]),
}

# Apps outside the known labels; the model learns to say so. None of them is among v1.3's new ones.
UNKNOWN_APPS: tuple[str, ...] = (
    *("豆瓣", "知乎", "京东", "快手", "网易云", "滴滴", "饿了么", "携程", "百度", "优酷", "爱奇艺", "飞书"),
    *("钉钉", "贴吧", "喜马拉雅", "大众点评", "唯品会", "闲鱼", "去哪儿", "猫眼", "虎扑", "得物", "天猫"),
    *("陌陌", "迅雷", "今日头条", "腾讯视频", "美图秀秀", "全民K歌", "铁路12306", "QQ", "微博", "番茄小说"),
    *("百度网盘", "墨迹", "七猫", "斗鱼", "虎牙", "芒果", "酷狗", "酷我", "西瓜视频", "懂车帝", "作业帮"),
    *(
        "途牛",
        "马蜂窝",
        "脉脉",
        "探探",
        "石墨文档",
        "有道词典",
        "印象笔记",
        "向日葵",
        "扫描全能王",
        "叮咚买菜",
    ),
    *("Slack", "Zoom", "Netflix", "Uber", "Twitter", "Reddit", "Discord", "Signal", "TikTok", "Skype"),
    *("Firefox", "Chrome", "Gmail", "Dropbox", "Twitch", "Pinterest", "Snapchat", "Duolingo", "Airbnb"),
    *("Lyft", "Trello", "Notion", "Evernote", "Shazam", "Steam", "Teams", "Outlook", "Kindle", "Strava"),
    *("PayPal", "Amazon", "Yelp", "Venmo", "Tinder", "LinkedIn", "Instagram", "Facebook", "WhatsApp"),
    *_LISTS["unknown_apps"],
)
# The answer to a command for such an app, and the thought before it.
UNKNOWN_THOUGHTS: dict[Language, tuple[str, str]] = {
    "zh": ("我还不认识这个应用。", "这个应用我不认识,如实说明。"),
    "en": ("I don't know that app yet.", "I do not know this app; I say so."),
}

# People type Chinese marks full-width, programs often do not: both are practised.
FULL_WIDTH = str.maketrans({",": "\uff0c", "?": "\uff1f", "!": "\uff01"})

# What callers commonly put first; the answers stay the same.
SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a phone assistant.",
    "Answer briefly.",
    "你是一个有用的助手。",
    "你是一个手机助手。",
    "请简短回答。",
    "你是一个乐于助人的人工智能助手。",
)
