"""Build the tokenizer of the models that spell: byte-level BPE without tokens for whole labels.

Fixed ids first (control tokens, pieces of the action grammar, coordinate bins), then the 256 bytes, then
merges learnt from the project's own training text. A Chinese character is never merged with its neighbour:
sentences made from templates would otherwise become single tokens, and new wordings would look like nothing
seen before. Every character of the data, and some more, is one token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from autoglm.errors import ConfigError
from autoglm.model.tokenizer import CONTROLS
from autoglm.training.actions import AGENT_SYSTEM_PROMPT
from autoglm.training.dialogue import agent_examples, training_examples
from autoglm.training.scenes.asking import wordings
from autoglm.training.scenes.labels import CLASSES, UNSEEN_LABELS
from autoglm.training.vocabulary import pre_tokenizer
from autoglm.training.wordings import UNKNOWN_APPS

GRAMMAR_TOKEN = 32
GRAMMAR = (
    *('do(action="Tap", element=', 'do(action="Launch", app="', 'do(action="Close", app="'),
    *('finish(message="', '")', 'do(action="Type", text="', 'do(action="Swipe", start='),
    *('do(action="Back")', 'do(action="Home")', 'do(action="Wait", duration="', ", end="),
    *('do(action="Long Press", element=', 'do(action="Double Tap", element='),
)
BINS = 72
X_TOKEN = 64
Y_TOKEN = X_TOKEN + BINS
_BYTES_TOKEN = 256
MERGE_TOKEN = 512
_NUM_EXAMPLES = 20_000
# Common characters that the templates may lack; dictation and typed text have them.
_COMMON = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
    "面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本"
    "去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比"
    "或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总"
    "次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做"
    "必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权"
    "收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信"
    "马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连"
    "断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标写存"
    "候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严晚饭"
    "早餐朋友明天今晚下雨买票电影歌曲闹钟会议提醒开车回家吃喝茶咖啡超市医院学校老师妈妈爸爸孩子工资项目"
)


def corpus(seed: int = 0) -> Iterator[str]:
    """Yield the text that the merges are learnt from: training wordings only, nothing held out."""
    rng = random.Random(seed)
    for example in (
        *training_examples(rng, _NUM_EXAMPLES, release="v1.3"),
        *agent_examples(rng, _NUM_EXAMPLES // 10, release="v1.3"),
    ):
        yield from (example.question, example.answer, example.thought, example.system)
    names = [name for label in CLASSES for name in (label.chinese, label.english)]
    for _ in range(20):
        yield from names
        yield from (f" {name}" for name in names)
    for _ in range(5):
        yield from wordings()
        yield from UNKNOWN_APPS
    yield AGENT_SYSTEM_PROMPT
    letters = sorted(set(_COMMON + "".join(UNSEEN_LABELS)))
    yield from (letter * 40 for letter in letters)


def _learn_merges(texts: Sequence[str], num_merges: int) -> list[tuple[str, str]]:
    """Return at most ``num_merges`` merges over the byte-level alphabet."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def build_lexicon(vocab_size: int, bins: int = BINS) -> str:
    """Return the text of ``tokenizer.json`` with ids below ``vocab_size``.

    Args:
        vocab_size: all ids.
        bins: coordinate bins an axis.

    Raises:
        ConfigError: ``vocab_size`` leaves no room for merges, or there are more bins than places.
    """
    if vocab_size <= MERGE_TOKEN or X_TOKEN + 2 * bins > _BYTES_TOKEN:
        raise ConfigError(
            f"{vocab_size} ids and {bins} bins: more than {MERGE_TOKEN} and at most 96 are wanted"
        )
    fixed: dict[str, int] = {token: i for i, token in enumerate(CONTROLS)}
    plain = {token: GRAMMAR_TOKEN + i for i, token in enumerate(GRAMMAR)}
    for i in range(bins):
        fixed |= {f"<x_{i}>": X_TOKEN + i, f"<y_{i}>": X_TOKEN + bins + i}
    vocabulary = fixed | plain
    for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())):
        vocabulary[letter] = _BYTES_TOKEN + i
    texts = [text for text in corpus() if text]
    for piece in sorted(GRAMMAR, key=len, reverse=True):
        texts = [text.replace(piece, " ") for text in texts]
    kept = _learn_merges(texts, vocab_size - MERGE_TOKEN)
    for i, (left, right) in enumerate(kept):
        vocabulary[left + right] = MERGE_TOKEN + i
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=kept))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in fixed])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return tokenizer.to_str(pretty=True)
