"""The training loop: seeded, resumable after any kill, with a curve on disk.

Every step's data depends only on the seed, the stage and the step, so a run that was killed goes on from its
last checkpoint as if nothing had happened. The run directory holds ``checkpoint.pt`` (replaced durably about
once a minute), ``curve.jsonl`` (one line a report), ``clips.npz`` and ``tokenizer.json``.

    >>> Trainer(Path("runs/v1.2"), recipe_named("v1.2"), seed=0).run()   # doctest: +SKIP
"""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.errors import ConfigError, EngineError
from autoglm.files import make_directory, write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import CONFIG_NAME
from autoglm.training import distributed
from autoglm.training.adapter import AdapterConfig, attach
from autoglm.training.batches import Batch, Batches
from autoglm.training.dialogue import knowledge, new_intents, spoken_questions
from autoglm.training.heads import AUX_BLOCKS, TrainingHeads, soft_targets, start_look_up
from autoglm.training.recipe import Recipe, Stage
from autoglm.training.screens import ALL_LABELS
from autoglm.training.speech import Clip, cached_clips, command_pairs
from autoglm.training.vocabulary import build_tokenizer

CHECKPOINT_NAME, CURVE_NAME = "checkpoint.pt", "curve.jsonl"
QUESTION_SHARE = 0.2  # of the clips: spoken questions
_FOCUS_SHARE = 0.5  # of the screens: drawn from fewer of the known labels, so that new ones are frequent
_FOCUS_REPEATS = 3  # new labels are spoken this much more often than known ones
_CHECKPOINT_SECONDS = 60.0
_REPORT_STEPS = 20
_SMOOTHING = 0.95
_WEIGHT_DECAY, _BETAS, _CLIP = 0.05, (0.9, 0.98), 1.0


def alphabet() -> str:
    """Return the characters of everything that is ever spoken, in order."""
    spoken = [text for text, _ in (*command_pairs(ALL_LABELS, None), *spoken_questions())]
    return "".join(sorted(set("".join(spoken).lower())))


class Trainer:
    """One run of one recipe in one directory.

    Attributes:
        model: the model, in training mode.
        measures: smoothed losses and in-batch accuracies by name.
    """

    def __init__(
        self,
        directory: Path,
        recipe: Recipe,
        *,
        seed: int = 0,
        start: Mapping[str, Tensor] | None = None,
        tokenizer: str | None = None,
        adapter: AdapterConfig | None = None,
        config: ModelConfig = CONFIGS["nano"],
    ) -> None:
        """Prepare a run, from its checkpoint where there is one.

        Args:
            directory: made when missing.
            recipe: what to train.
            seed: of all randomness.
            start: weights that a fine-tune starts from.
            tokenizer: text of the tokenizer.json that a fine-tune keeps; a fresh start builds its own.
            adapter: put one beside the starting weights; the recipe says that only it is trained.
            config: the model's sizes.

        Raises:
            ConfigError: the recipe needs starting weights, or the checkpoint belongs to another run.
        """
        if (recipe.base is not None) != (start is not None):
            raise ConfigError("a fine-tune, and only a fine-tune, starts from the weights of a release")
        make_directory(directory)
        if distributed.is_first():
            write_durably(directory / CONFIG_NAME, config.to_json().encode())
        self.directory, self.recipe, self.seed, self.config = directory, recipe, seed, config
        torch.manual_seed(seed)
        with distributed.first_before_others():
            self.tokenizer = Tokenizer.from_bytes(self._tokenizer_text(tokenizer).encode())
        self.batches = Batches(self.tokenizer, config)
        self.model = PhoneModel(config)
        self.model.image.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.heads = TrainingHeads(config, alphabet())
        if start is not None:
            self.model.load_state_dict(dict(start), strict=False)
            self.model.table.weight.register_hook(self._only_new_rows())
        self.adapter = adapter
        if adapter is not None:
            attach(self.model, adapter, seed=seed)
        self._start = dict(start or {})
        self.targets = soft_targets(config)
        self.measures: dict[str, float] = {}
        self.stage_index, self.step, self.seconds = 0, 0, 0.0
        self._prepare()
        self.optimizer = self._new_optimizer()
        self._clips: list[Clip] | None = None
        self._fixed: list[Batch] = []
        self._resume()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and shows its progress."""
        return distributed.is_first()

    def _prepare(self) -> None:
        """Set up what a kind of run needs beside its recipe; called once, before a checkpoint is read."""

    def run(self, progress: Any = None) -> dict[str, float]:
        """Train to the end of the recipe.

        Args:
            progress: called as ``progress(stage, step, measures)`` after every step.

        Returns:
            The last measures.

        Raises:
            EngineError: a loss is not finite, or a stage fell short of its gate.
        """
        try:
            while self.stage_index < len(self.recipe.stages):
                stage = self.recipe.stages[self.stage_index]
                if self.step == 0:
                    self._begin(stage)
                self._run_stage(stage, progress)
                self.stage_index, self.step = self.stage_index + 1, 0
                self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        return dict(self.measures)

    def _begin(self, stage: Stage) -> None:
        self.optimizer = self._new_optimizer()
        self.measures = {}
        if stage.look_up:
            start_look_up(self.model, torch.Generator().manual_seed(self.seed))

    def _run_stage(self, stage: Stage, progress: Any) -> None:
        saved = time.monotonic()
        while self.step < stage.steps:
            began = time.monotonic()
            self._train_step(stage, distributed.share(self._draw(stage)))
            self.step += 1
            self.seconds += time.monotonic() - began
            self._check(stage)
            if self.step % _REPORT_STEPS == 0 or self.step == stage.steps:
                self._report(stage)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            if progress is not None:
                progress(stage, self.step, self.measures)

    def _only_new_rows(self) -> Callable[[Tensor], Tensor]:
        """Return a hook that keeps the gradient of those token rows that the update's news needs."""
        news = new_intents(self.recipe.release)
        ids: set[int] = set()
        for intent in knowledge(self.recipe.release):
            for phrases in intent.phrases.values() if intent.name in news else ():
                lines = (*itertools.chain.from_iterable(phrases.cores(held_out=False)), phrases.answer)
                ids |= {i for line in (*lines, phrases.thought) for i in self.tokenizer.encode(line)}
        ids |= {i for label in self.recipe.focus for i in self.tokenizer.encode(label)}
        rows = torch.zeros(self.config.vocab_size, 1)
        rows[sorted(ids)] = 1
        return lambda gradient: gradient * rows

    # Data

    def _tokenizer_text(self, given: str | None) -> str:
        path = self.directory / "tokenizer.json"
        if given is not None:
            write_durably(path, given.encode())
        elif not path.exists():
            write_durably(path, build_tokenizer(self.config.vocab_size).encode())
        return path.read_text()

    def _draw(self, stage: Stage) -> Batch:
        """Return the batch of this step."""
        rng = random.Random(f"{self.seed}/{stage.name}/{self.step}")
        kind = stage.mix[self.step % len(stage.mix)]
        count = stage.batch[kind]
        if kind == "text":
            return self.batches.text(rng, count, self.recipe.release, stage.variety)
        if kind == "audio":
            return self.batches.speech(rng, count, self.clips(), stage.variety)
        if stage.name == "overfit":
            return self._fixed_screens(rng, stage, count)
        return self._screens(rng, stage, count)

    def _screens(self, rng: random.Random, stage: Stage, count: int) -> Batch:
        labels = list(self.recipe.labels)
        if self.recipe.focus and rng.random() < _FOCUS_SHARE:
            others = [label for label in labels if label not in self.recipe.focus]
            labels = [*self.recipe.focus, *rng.sample(others, len(others) // 2)]
        return self.batches.screens(
            rng, count, num_elements=stage.num_elements, labels=labels, variety=stage.variety
        )

    def _fixed_screens(self, rng: random.Random, stage: Stage, count: int) -> Batch:
        while len(self._fixed) < 64 // count:
            self._fixed.append(self._screens(rng, stage, count))
        return self._fixed[self.step % len(self._fixed)]

    def clips(self) -> list[Clip]:
        """Return the training clips, synthesised at first use."""
        if self._clips is None:
            with distributed.first_before_others():
                self._clips = cached_clips(
                    self.directory / "clips.npz",
                    self.seed,
                    self.recipe.num_clips,
                    labels=self.recipe.labels + self.recipe.focus * _FOCUS_REPEATS,
                    question_share=QUESTION_SHARE,
                )
        return self._clips

    # One step

    def _train_step(self, stage: Stage, batch: Batch) -> None:
        rate = self._learning_rate(stage)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.model.train()
        if stage.fine_tune:
            freeze_statistics(self.model)
        loss = self._loss(stage, batch)
        if not math.isfinite(loss.item()):
            raise EngineError(f"the loss is {loss.item()} in stage {stage.name} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self._parameters())
        nn.utils.clip_grad_norm_(self._parameters(), _CLIP)
        self.optimizer.step()
        if stage.anchor > 0:
            self._pull(rate * stage.anchor)

    @torch.no_grad()
    def _pull(self, share: float) -> None:
        """Move every weight by ``share`` of the way back to where the fine-tune started (L2-SP)."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.lerp_(self._start[name], share)

    def _loss(self, stage: Stage, batch: Batch) -> Tensor:
        hidden, middle, stem = self._forward(stage, batch)
        total = torch.zeros(())
        if not stage.labels_only:
            total = total + self._answer_loss(hidden, batch)
        if batch.kind == "image" and batch.patches is not None:
            begin, end = batch.media_at, batch.media_at + batch.patches.shape[1]
            logits = self.heads.patch_logits(self.model, middle[:, begin:end])
            patch = self.heads.patch_loss(logits, batch.patches)
            first = self.heads.patch_loss(self.heads.stem(self.heads.stem_norm(stem)), batch.patches)
            total = total + stage.patch_weight * patch + stage.stem_weight * first
            shown = batch.patches > 0
            self._measure("patch_loss", patch)
            self._measure("patch", (logits.argmax(-1) == batch.patches)[shown].float().mean())
        if batch.kind == "audio" and stage.sound_weight > 0:
            begin, end = batch.media_at, batch.media_at + self.config.audio.min_tokens
            sound = self.heads.sound_loss(middle[:, begin:end], batch.transcripts)
            total = total + stage.sound_weight * sound
            self._measure("ctc", sound)
        return total

    def _forward(
        self, stage: Stage, batch: Batch, model: PhoneModel | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the final stream, the stream after the middle block, and the embedded media.

        Of the model in training, or of another one, such as its teacher.
        """
        model = model or self.model
        ids, positions, bias = batch.ids, batch.positions, batch.bias
        stem = torch.zeros(())
        if stage.labels_only:  # the questions are not read yet: leave them out
            assert batch.patches is not None
            end = batch.media_at + batch.patches.shape[1] + 1
            ids, positions, bias = ids[:, :end], positions[:, :end], bias[:, :, :end, :end]
        with torch.autocast("cpu", torch.bfloat16):
            x = model.embed_tokens(ids)
            if batch.media is not None:
                stem, media = self._embed(batch, model)
                begin, end = batch.media_at, batch.media_at + media.shape[1]
                x = torch.cat([x[:, :begin], media, x[:, end:]], 1)
            hidden, middle = model(
                x.bfloat16(),
                positions,
                bias.bfloat16(),
                hidden_after=AUX_BLOCKS,
                stop_after=AUX_BLOCKS if stage.labels_only else 0,
            )
        return hidden, middle, stem

    def _embed(self, batch: Batch, model: PhoneModel) -> tuple[Tensor, Tensor]:
        assert batch.media is not None
        if batch.kind == "audio":
            return torch.zeros(()), model.embed_audio(batch.media)
        stem = model.image(batch.media).float()
        return stem, model.place_images(stem)

    def _answer_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        asked = batch.targets >= 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.logits(hidden[asked])
        targets, weights = batch.targets[asked], batch.weights[asked]
        losses = F.cross_entropy(logits.float(), self.targets[targets], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        self._measure(f"{batch.kind}_loss", loss)
        right = (logits.argmax(-1) == targets).float()
        self._measure(f"{batch.kind}_token", (right * weights).sum() / weights.sum())
        if batch.kind == "image":
            y = (targets >= self.config.image.y_token) & (weights >= 1)
            y &= targets < self.config.image.y_token + self.config.image.bins
            if bool(y.any()):
                near = (logits.argmax(-1) - targets).abs() <= 1
                self._measure("tap", near[y].float().mean())
        return loss

    # Bookkeeping

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.heads.parameters()]

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with a group for each rate; vectors do not decay, nor does a fine-tune."""
        stage = self.recipe.stages[min(self.stage_index, len(self.recipe.stages) - 1)]
        named = (*self.model.named_parameters(), *self.heads.named_parameters(prefix="heads"))
        grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            chosen = not stage.trained or name.startswith("heads.")
            parameter.requires_grad_(chosen or any(re.match(pattern, name) for pattern in stage.trained))
            key = (stage.rates.get(name.partition(".")[0], 1.0), parameter.dim() > 1)
            grouped.setdefault(key, []).append(parameter)
        groups = [
            {
                "params": parameters,
                "rate": rate,
                "weight_decay": _WEIGHT_DECAY if decays and not stage.fine_tune else 0.0,
            }
            for (rate, decays), parameters in grouped.items()
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=_BETAS, eps=stage.adam_eps, fused=True)

    def _learning_rate(self, stage: Stage) -> float:
        warm = min(1.0, (self.step + 1) / max(1, stage.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / stage.steps))
        return stage.learning_rate * warm * (0.05 + 0.95 * cosine)

    def _measure(self, name: str, value: Tensor) -> None:
        number = value.item()
        if math.isfinite(number):
            self.measures[name] = _SMOOTHING * self.measures.get(name, number) + (1 - _SMOOTHING) * number

    def _check(self, stage: Stage) -> None:
        if stage.gate is None or self.step != stage.gate[1]:
            return
        name, _, least = stage.gate
        reached = distributed.average_measures(self.measures).get(name, 0.0)
        if reached < least:
            raise EngineError(
                f"stage {stage.name} reached {name} {reached:.3f} at step {self.step}, "
                f"less than {least}: it will not recover; see the curve in {self.directory}"
            )

    def _report(self, stage: Stage) -> None:
        line = {"stage": stage.name, "step": self.step, "seconds": round(self.seconds, 1)}
        measures = distributed.average_measures(self.measures)
        line |= {name: round(value, 4) for name, value in measures.items()}
        if not distributed.is_first():
            return
        with (self.directory / CURVE_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the checkpoint, durably; of several processes the first one does.

        Raises:
            StorageError: the disk refused; the last checkpoint is untouched.
        """
        if not distributed.is_first():
            return
        content = {
            "recipe": self.recipe.release,
            "seed": self.seed,
            "adapter": None if self.adapter is None else asdict(self.adapter),
            "stage": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
            "measures": self.measures,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_durably(self.directory / CHECKPOINT_NAME, buffer.getvalue())

    def _resume(self) -> None:
        path = self.directory / CHECKPOINT_NAME
        if not path.exists():
            return
        content = torch.load(path, weights_only=True)
        adapter = None if self.adapter is None else asdict(self.adapter)
        mine = (self.recipe.release, self.seed, adapter)
        if (content["recipe"], content["seed"], content.get("adapter")) != mine:
            raise ConfigError(f"{path} belongs to another run: give another directory")
        self.model.load_state_dict(content["model"])
        self.heads.load_state_dict(content["heads"])
        self.stage_index, self.step = content["stage"], content["step"]
        if self.step > 0:  # a stage begins with a fresh optimiser
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(content["optimizer"])
        self.seconds, self.measures = content["seconds"], content["measures"]


def freeze_statistics(model: nn.Module) -> None:
    """Put batch normalisation into evaluation mode: a fine-tune on few data keeps its statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
