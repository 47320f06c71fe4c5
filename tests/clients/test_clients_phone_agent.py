"""Open-AutoGLM's requests and parser, with whole screenshots and a dialogue of several steps."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from autoglm.training.actions import AGENT_SYSTEM_PROMPT, is_valid_action
from autoglm.training.screens import render
from clients.phone_agent import PhoneAgent, read_action, split

MODEL = "autoglm-phone-9b"
# A prompt as long and as structured as a client's own, in other words than the model was trained with.
LONG_PROMPT = """今天的日期是: 2026年11月23日 星期一
你是一个会操作安卓手机的智能体。请根据任务、历史操作和当前屏幕截图,决定下一步做什么。
输出格式必须是:
<think>{think}</think>
<answer>{action}</answer>
其中 {think} 用一句话说明理由,{action} 是下面的一条指令:
- do(action="Launch", app="xxx") 打开应用。
- do(action="Tap", element=[x,y]) 点击,坐标从左上角 (0,0) 到右下角 (999,999)。
- do(action="Type", text="xxx") 在已聚焦的输入框里输入文字。
- do(action="Swipe", start=[x1,y1], end=[x2,y2]) 滑动。
- do(action="Back") 返回上一页。  - do(action="Home") 回到桌面。
- do(action="Wait", duration="x seconds") 等待页面加载。
- finish(message="xxx") 任务完成,message 是结果。
规则:1. 操作前先看当前应用是不是目标应用,不是就先 Launch。2. 页面没有加载出来时最多连续 Wait 三次。
3. 找不到目标就滑动查找。4. 一次只输出一条指令。
"""


def screenshot(seed: int) -> bytes:
    """A phone's screen of 1080x2400 as a PNG of about 1 MB: a drawn one, with noise at the top."""
    small = Image.fromarray(render(random.Random(seed)).image)
    pixels = np.asarray(small.resize((1080, 2400), Image.Resampling.NEAREST)).copy()
    noise = np.random.default_rng(seed).integers(0, 256, (320, 1080, 3), dtype=np.uint8)
    pixels[:320] = noise
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)


def test_the_preflight_is_answered_in_plain_words(client: OpenAI) -> None:
    """ "Hi" with five tokens gets some text and no tag."""
    answer = PhoneAgent(client, MODEL, LONG_PROMPT).preflight()
    assert answer
    assert "<" not in answer


@pytest.mark.needs("wqy-zenhei")
def test_a_task_of_several_steps_gives_an_action_each(client: OpenAI) -> None:
    """Every step's megabyte of screenshot is answered by one legal action, over the agent's own history."""
    agent = PhoneAgent(client, MODEL, AGENT_SYSTEM_PROMPT)
    for seed, (task, app) in enumerate([("打开微信", "桌面"), ("点击设置", "微信"), ("点击地图", "设置")]):
        picture = screenshot(seed)
        assert 800_000 < len(picture) < 3_000_000
        action = agent.step(task, picture, app)
        assert action["_"] in ("do", "finish")
        assert all(0 <= part < 1000 for part in action.get("element", ()))
    for turn in agent.history[2::2]:
        thinking, said = split(turn["content"].removesuffix("</answer>"))
        assert thinking
        assert is_valid_action(said)
    assert "".join(agent.told).startswith("<think>")
    assert not any("image_url" in str(turn) for turn in agent.history)


@pytest.mark.needs("wqy-zenhei")
def test_a_prompt_in_other_words_keeps_the_form(client: OpenAI) -> None:
    """Whatever the small model makes of a client's own long prompt, tags come in order and at most once."""
    agent = PhoneAgent(client, MODEL, LONG_PROMPT)
    raw: list[str] = []
    stream = agent._stream
    agent._stream = lambda: raw.append(stream()) or raw[-1]  # type: ignore[method-assign, func-returns-value]
    for seed in range(2):
        try:
            agent.step("打开天气", screenshot(seed), "桌面")
        except ValueError:
            continue  # not every answer is an action; the client tells its user and goes on
    assert len(raw) == 2
    for content in raw:
        assert content.startswith("<think>")
        assert "</answer>" not in content
        # A thought that the small model does not end leaves no answer; an answer follows a whole thought.
        assert content.count("<answer>") == content.count("</think><answer>") <= 1


def test_a_closing_tag_would_break_this_client() -> None:
    """Why the service never sends ``</answer>``: what follows the marker is read as one call."""
    action = 'do(action="Tap", element=[5,7])'
    assert read_action(split(f"<think>a</think><answer>{action}")[1])["element"] == [5, 7]
    with pytest.raises(ValueError, match="no action"):
        read_action(split(f"<think>a</think><answer>{action}</answer>")[1])
