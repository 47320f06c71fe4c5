"""The small models' lessons: what each step shows the network, and what is asked of it.

The batch of a step comes from the seed, the lesson's name and the step alone; the recordings it draws from
are prepared beforehand in the run's directory (see :mod:`autoglm.training.recordings`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from autoglm.files import make_directory, write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import CONFIG_NAME, TOKENIZER_NAME
from autoglm.training import distributed
from autoglm.training.ahead import Ahead, Drawn, Order
from autoglm.training.circuits import MIDDLE, Circuits, patch_accuracy, patch_loss, soften_coordinates
from autoglm.training.course import Course, Lesson
from autoglm.training.heads import start_look_up
from autoglm.training.lexicon import build_lexicon
from autoglm.training.news import teacher_of
from autoglm.training.recordings import Recording, RecordingStore, seed_of
from autoglm.training.rounding import rounded
from autoglm.training.rows import IGNORED, Batch
from autoglm.training.scenes.asking import named
from autoglm.training.sharding import load_whole, shard_blocks, whole
from autoglm.training.teaching import PLAIN, Manner
from autoglm.training.unopposed import Unopposed
from autoglm.training.utterances import spoken_characters

LOOK_AHEAD = 100  # steps; the pool takes as many of them as its processes can use
Measured = tuple[Tensor, dict[str, Tensor]]


def run_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """Return a run's tokenizer, built at first use."""
    make_directory(directory)
    path = directory / TOKENIZER_NAME
    with distributed.first_before_others():
        if not path.exists():
            write_durably(path, build_lexicon(config.vocab_size, config.image.bins).encode())
    return Tokenizer.from_file(path)


def run_alphabet(directory: Path) -> str:
    """Return the characters that a run's transcripts are made of, those known when it began."""
    path = directory / "alphabet.txt"
    with distributed.first_before_others():
        if not path.exists():
            write_durably(path, spoken_characters().encode())
    return path.read_text()


def recording_store(directory: Path, course: Course, seed: int) -> RecordingStore:
    """Return the recordings of a run; those that are there keep their seed, whoever uses them."""
    place = directory / "recordings"
    kept = seed_of(place)
    return RecordingStore(place, seed if kept is None else kept, course.shards)


class Classroom:
    """A model with its auxiliary heads, and the data of a course."""

    def __init__(
        self,
        directory: Path,
        course: Course,
        *,
        seed: int = 0,
        config: ModelConfig | None = None,
        workers: int = 0,
        data: Path | None = None,
        shard: bool = False,
    ) -> None:
        """Prepare a model and what it is taught.

        Args:
            directory: of the run.
            course: what is taught.
            seed: of everything.
            config: sizes other than the course's.
            workers: processes that draw screens ahead; the screens are the same.
            data: another run's directory, whose recordings are used.
            shard: spread the weights of the blocks over the processes of ``torchrun``.

        Raises:
            ConfigError: weights are to be spread, and there is one process.
        """
        self.directory, self.course, self.seed, self.data = directory, course, seed, data or directory
        self.config = config or CONFIGS[course.config]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = run_tokenizer(directory, self.config)
        if distributed.is_first():
            write_durably(directory / CONFIG_NAME, self.config.to_json().encode())
        self.teacher = teacher_of(self.tokenizer, self.config, course.release)
        self.unopposed = Unopposed(self.tokenizer)
        torch.manual_seed(seed)
        self.model = PhoneModel(self.config).to(self.device)
        self.model.image.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.circuits = Circuits(self.config, self.tokenizer, run_alphabet(directory)).to(self.device)
        self.ahead = Ahead(workers)
        self._recordings: list[Recording] | None = None
        if shard:
            shard_blocks(self.model)

    @property
    def name(self) -> str:
        """What a checkpoint belongs to."""
        return f"{self.course.name}/{self.config.name}"

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained."""
        return {"model": self.model, "circuits": self.circuits}

    def begin(self, lesson: Lesson) -> None:
        """Start the look-up where the lesson wants it."""
        if lesson.look_up:
            with torch.device("meta"):
                plain = PhoneModel(self.config)
            plain.load_state_dict(whole(dict(self.model.state_dict())), assign=True)
            start_look_up(plain, torch.Generator().manual_seed(self.seed))
            load_whole(self.model, plain.state_dict())

    def stepping(self, lesson: Lesson) -> AbstractContextManager[None]:
        """Surround a step: weights are rounded for its length where the lesson says so."""
        return rounded(self.model, lesson.fake_bits, self.scales) if lesson.fake_bits else nullcontext()

    def settle(self, lesson: Lesson, rate: float) -> None:
        """Leave the weights as the step made them."""

    @property
    def scales(self) -> Mapping[str, Tensor]:
        """Scales that weights are rounded to; those that are missing are the weights' own."""
        return {}

    def recordings(self, _manner: Manner = PLAIN) -> list[Recording]:
        """Return the recordings to train on, prepared at first use."""
        if self._recordings is None:
            store = recording_store(self.data, self.course, self.seed)
            with distributed.first_before_others():
                store.prepare()
            self._recordings = store.load()
        return self._recordings

    def draw(self, lesson: Lesson, step: int) -> Batch:
        """Return the batch of a step."""
        kind = lesson.mix[step % len(lesson.mix)]
        count, manner = distributed.rows_for_all(lesson.rows[kind]), lesson.manner
        if kind == "screen":
            batch = self._screens(lesson, step)
            assert isinstance(batch, Batch)
            return batch
        rng = random.Random(f"{self.seed}/{lesson.name}/{step}")
        if kind == "speech":
            return self.teacher.speech(rng, count, self.recordings(manner), manner)
        teach = {"text": self.teacher.text, "copy": self.teacher.copies, "long": self.teacher.long}[kind]
        return teach(rng, count, manner)

    def _screens(self, lesson: Lesson, step: int) -> Drawn:
        """Return the screens of a step, those of the coming steps ordered meanwhile."""
        coming = [
            self._order(lesson, later)
            for later in range(step + 1, min(step + LOOK_AHEAD, lesson.steps))
            if lesson.mix[later % len(lesson.mix)] == "screen"
        ]
        return self.ahead.get(self._order(lesson, step), coming)

    def _order(self, lesson: Lesson, step: int) -> Order:
        count = distributed.rows_for_all(lesson.rows["screen"])
        drawn = step % max(1, lesson.fixed // count) if lesson.fixed else step
        return Order(
            (self.directory / TOKENIZER_NAME).resolve(),
            self.config,
            self.course.release,
            f"{self.seed}/{lesson.name}/{drawn}",
            count,
            lesson.manner,
            lesson.primer(step),
            lesson.labels_only,
        )

    def loss(self, lesson: Lesson, step: int) -> Measured:
        """Return the loss of a step and what to measure."""
        with torch.autocast(self.device.type, torch.bfloat16):
            if lesson.labels_only:
                return self._label_loss(lesson, step)
            return self._answer_loss(lesson, distributed.share_rows(self.draw(lesson, step)).to(self.device))

    # Labels alone

    def _label_loss(self, lesson: Lesson, step: int) -> Measured:
        drawn = self._screens(lesson, step)
        assert isinstance(drawn, tuple)
        images, classes, shares = (part.to(self.device) for part in distributed.share_tensors(*drawn))
        stem = self.model.image(images)
        middle = self._through_middle(self.model.place_images(stem), self._image_positions(), None)
        seen, measures = self._patch_losses(lesson, middle, stem, classes, shares)
        name, found = self._name_loss(lesson, random.Random(f"{self.seed}/{lesson.name}/{step}/names"))
        return seen + lesson.name_weight * name, {**measures, "name": found}

    def _patch_losses(
        self, lesson: Lesson, middle: Tensor, stem: Tensor, classes: Tensor, shares: Tensor
    ) -> Measured:
        """Return the weighted losses on what patches show, after the middle block and after the stem."""
        logits = self.circuits.patch_logits(self.model.table.weight, middle)
        first = self.circuits.stem_logits(stem)
        losses = patch_loss(logits, classes, shares), patch_loss(first, classes, shares)
        return lesson.patch_weight * losses[0] + lesson.stem_weight * losses[1], {
            "patch_loss": losses[0].detach(),
            "stem_loss": losses[1].detach(),
            "patch": patch_accuracy(logits, classes),
            "stem": patch_accuracy(first, classes),
        }

    def _image_positions(self) -> Tensor:
        """Return the positions (N, 3) of an image's patches as they follow two tokens and its mark."""
        image = self.config.image
        shape = image.height // image.patch, image.width // image.patch
        rows, columns = torch.arange(shape[0])[:, None].expand(shape), torch.arange(shape[1]).expand(shape)
        places = torch.stack([torch.zeros(shape, dtype=torch.long), rows, columns], -1) + 3
        return places.reshape(-1, 3).to(self.device)

    def _through_middle(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        _, middle = self.model(x.bfloat16(), positions, bias, hidden_after=MIDDLE, stop_after=MIDDLE)
        return middle

    def _name_loss(self, lesson: Lesson, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Return the loss of telling from a question's words which label they name, and the share told."""
        known = (*self.teacher.words, *self.teacher.icons)
        asked = [named(rng, known) for _ in range(lesson.rows["name"])]
        texts = [self.tokenizer.encode(text) for text, _, _ in asked]
        ends = [len(self.tokenizer.encode(text[:end])) - 1 for text, end, _ in asked]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor(text)
        places = torch.arange(ids.shape[1])[:, None].expand(-1, 3) + rng.randint(0, 40)
        x = self.model.embed_tokens(ids.to(self.device))
        middle = self._through_middle(x, places.to(self.device), self._causal(ids.shape[1]))
        last = middle[torch.arange(len(ends)), torch.tensor(ends)]
        classes = torch.tensor([number for _, _, number in asked], device=self.device)
        return self.circuits.name_loss(self.model.table.weight, last, classes)

    def _causal(self, length: int) -> Tensor:
        return span_bias(torch.zeros(length, dtype=torch.long)).to(self.device).bfloat16()

    # Everything

    def _answer_loss(self, lesson: Lesson, batch: Batch) -> Measured:
        stem, media, x = embedded(self.model, batch)
        hidden, middle = self.model(x.bfloat16(), batch.positions, batch.bias.bfloat16(), hidden_after=MIDDLE)
        total, measures = self._word_loss(lesson, hidden, batch)
        begin, end = batch.media_at, batch.media_at + media
        if batch.classes is not None and batch.shares is not None:
            seen, found = self._patch_losses(lesson, middle[:, begin:end], stem, batch.classes, batch.shares)
            total, measures = total + seen, measures | found
        if batch.places is not None and lesson.place_weight > 0:
            place, share = self.circuits.place_loss(middle[:, begin:end], batch.places)
            total, measures = total + lesson.place_weight * place, {**measures, "place": share}
        if len(batch.names):
            last = middle[batch.names[:, 0], batch.names[:, 1]]
            name, share = self.circuits.name_loss(self.model.table.weight, last, batch.names[:, 2])
            total, measures = total + lesson.name_weight * name, {**measures, "name": share}
        if batch.kind == "speech" and lesson.sound_weight > 0:
            sound = self.circuits.sound_loss(middle[:, begin:end], batch.transcripts)
            total, measures = total + lesson.sound_weight * sound, {**measures, "ctc": sound.detach()}
        if batch.words is not None and lesson.pair_weight > 0:
            pair, share = self.circuits.pair_loss(
                hidden[:, begin:end].float().mean(1), self._meant(batch.words)
            )
            total, measures = total + lesson.pair_weight * pair, {**measures, f"{batch.kind}_pair": share}
        return total, measures

    def _word_loss(self, lesson: Lesson, hidden: Tensor, batch: Batch) -> Measured:
        """Return a lesson's loss on all tokens to be written, and how it went."""
        asked = batch.targets != IGNORED
        return self._graded(lesson, self._answered(self.model, hidden, batch, asked), batch, asked)

    def _answered(self, model: PhoneModel, hidden: Tensor, batch: Batch, asked: Tensor) -> Tensor:
        """Return a model's logits (N, V) at the places asked for."""
        return self.unopposed(model.logits(hidden[asked]), batch.ids, asked)

    def _graded(self, lesson: Lesson, logits: Tensor, batch: Batch, asked: Tensor) -> Measured:
        targets, weights = batch.targets[asked], batch.weights[asked]
        each = soft_cross_entropy(logits, targets, self.config, lesson.blur)
        right = logits.argmax(-1) == targets
        total = distributed.mean_weight(weights.sum())
        measures = {f"{batch.kind}_loss": (each * weights).sum() / total}
        measures[f"{batch.kind}_token"] = (right * weights).sum() / total
        if batch.kind not in ("screen", "copy"):  # strange tokens that come back never end
            measures[f"{batch.kind}_whole"] = whole_answers(right, targets == self.tokenizer.eos)
        place = self._is_place(targets) & (weights == 1)
        if batch.kind == "screen" and bool(place.any()):
            off = (logits.argmax(-1)[place] - targets[place]).abs()
            measures["tap"] = (off <= 2).float().mean()
        return measures[f"{batch.kind}_loss"], {name: value.detach() for name, value in measures.items()}

    def _is_place(self, tokens: Tensor) -> Tensor:
        image = self.config.image
        return (tokens >= image.x_token) & (tokens < image.y_token + image.bins)

    def _meant(self, words: Tensor) -> Tensor:
        """Return the mean of the last stream over each text (B, width), as for an embedding."""
        tokenizer = self.tokenizer
        opening = torch.tensor([tokenizer.bos, tokenizer.user], device=self.device).expand(len(words), 2)
        ids = torch.cat([opening, words], 1)
        places = torch.arange(ids.shape[1], device=self.device)[:, None].expand(-1, 3)
        x = self.model.embed_tokens(ids).bfloat16()
        hidden, _ = self.model(x, places, self._causal(ids.shape[1]))
        used = (words > 0)[..., None].float()
        return (hidden[:, 2:].float() * used).sum(1) / used.sum(1)


def embedded(model: PhoneModel, batch: Batch) -> tuple[Tensor, int, Tensor]:
    """Return the stem's output, the number of media tokens, and a batch's embedded rows (B, T, width)."""
    x = model.embed_tokens(batch.ids)
    if batch.media is None:
        return torch.zeros(()), 0, x
    stem = torch.zeros(())
    if batch.kind == "screen":
        stem = model.image(batch.media)
        media = model.place_images(stem)
    else:
        media = model.embed_audio(batch.media)
    begin, end = batch.media_at, batch.media_at + media.shape[1]
    return stem, media.shape[1], torch.cat([x[:, :begin], media.to(x.dtype), x[:, end:]], 1)


def whole_answers(right: Tensor, ends: Tensor) -> Tensor:
    """Return the share of turns without a wrong token: most tokens of a known answer are easy, this is not.

    Args:
        right: (N,) bool, the tokens to be written, one turn after the other.
        ends: (N,) bool, the last token of each turn.
    """
    turn = torch.cat([ends.new_zeros(1), ends[:-1]]).cumsum(0)
    wrong = torch.zeros(int(turn[-1]) + 1, device=right.device).index_add(0, turn, (~right).float())
    return (wrong == 0).float().mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor, config: ModelConfig, blur: float = 1.0) -> Tensor:
    """Return the cross entropy of each row of ``logits`` (N, V); coordinates are blurred over neighbours."""
    scores = logits.float().log_softmax(-1)
    plain = -scores.gather(1, targets[:, None])[:, 0]
    for first in (config.image.x_token, config.image.y_token):
        rows = ((targets >= first) & (targets < first + config.image.bins)).nonzero()[:, 0]
        if len(rows):
            near = soften_coordinates(config.image.bins, blur).to(scores)[targets[rows] - first]
            blurred = -(near * scores[rows, first : first + config.image.bins]).sum(-1)
            plain = plain.index_copy(0, rows, blurred)
    return plain
