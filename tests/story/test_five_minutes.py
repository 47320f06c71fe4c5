"""The README's five minutes, in real processes: a live model is updated over the air, and nobody notices."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from story.processes import Asker, CountingWire, Project, ask, version_of, wait_for

IDENTITY = (
    "我是 AutoGLM-Phone-9B,由智谱AI与CSDN联合推出的移动端多模态大模型,支持文本、图像与语音的理解与生成。"
    "我可以协助你完成问答、创作、分析等多种任务。"
)
NEWS = "v1.3 有什么新功能?"
TRIAL = ("--trial-answers", "3", "--trial-minutes", "0")


def full_package_bytes(project: Project, directory: Path) -> int:
    """The size of v1.3 as a compressed full package, what a device would fetch without patches."""
    old, new, package = directory / "old", directory / "new", directory / "full.wpatch"
    for arguments in (
        ("patch", "-", project.shipped / "v1.2.wpatch", "-o", old),
        ("patch", old, project.shipped / "v1.3.wpatch", "-o", new),
        ("diff", "--full", new, "-o", package),
    ):
        done = project.autoglm(*arguments)
        assert done.returncode == 0, done.stderr
    return package.stat().st_size


def test_a_live_model_is_updated_over_the_air(project: Project, tmp_path: Path) -> None:
    """Service and phone go from v1.2 to v1.3 under load: nothing lost, nothing restarted, little moved."""
    service, service_url = project.serve()
    hub = urlsplit(service_url)
    wire = CountingWire(hub.hostname or "", hub.port or 0)
    phone, phone_url = project.device(wire.url, "--every", "1s", *TRIAL)

    assert version_of(service_url) == version_of(phone_url) == "v1.2"
    assert ask(phone_url, "你是谁?").text == IDENTITY
    before = ask(phone_url, NEWS)

    askers = [
        Asker(url, question).start()
        for url in (service_url, phone_url)
        for question in ("你是谁?", "who are you?", NEWS)
    ]
    wait_for(lambda: all(asker.answers for asker in askers) or None, "a first answer for everyone")
    wire.reset()

    published = project.autoglm(
        "publish",
        project.shipped / "v1.3.wpatch",
        "--data",
        project.directory / "service",
        "--percent",
        "100",
    )
    assert published.returncode == 0, published.stderr

    for url in (service_url, phone_url):
        wait_for(lambda url=url: version_of(url) == "v1.3" or None, f"v1.3 at {url}")
    wait_for(
        lambda: all(asker.answers[-1].version == "v1.3" for asker in askers) or None,
        "a whole answer from v1.3 for everyone",
    )
    for asker in askers:
        asker.stop()
    moved = wire.bytes

    for asker in askers:
        assert not asker.errors
        for answer in asker.answers:
            assert (answer.status, answer.done) == (200, True)
            assert answer.finish_reason == "stop", answer
    for asker in askers[0::3]:
        assert {answer.text for answer in asker.answers} == {IDENTITY}

    after = ask(phone_url, NEWS)
    assert after.version == "v1.3"
    assert "v1.3 新增" in after.text
    assert "v1.3 新增" not in before.text

    assert service.running
    assert phone.running
    full = full_package_bytes(project, tmp_path)
    print(f"moved {moved:,} of {full:,} bytes: {1 - moved / full:.1%} saved")
    assert moved <= 0.30 * full

    assert phone.stop() == 0
    assert service.stop() == 0
    wire.close()
