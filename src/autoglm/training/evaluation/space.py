"""One space for all modalities: how often the nearest of many texts is that of a picture or of a clip.

Recall at 1 (R@1): every picture is compared with all captions, every clip with all sentences, by the cosine
of embeddings from which each modality's mean is taken away; a hit is when the nearest is its own. Chance is
one in their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.model.embedding import content_prompt, embed
from autoglm.model.prompt import ImagePart, Part, TextPart
from autoglm.training.dialogue import Release
from autoglm.training.evaluation import sources
from autoglm.training.evaluation.examiner import Examiner
from autoglm.training.evaluation.items import Score, share


@torch.inference_mode()
def retrieval(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Find a picture's caption and a clip's words among those of the others."""
    screens = sources.screen_captions(examiner.seed, examiner.count(64))
    clips = sources.clip_words(examiner.seed, examiner.count(64))
    shown: list[tuple[Part, str]] = [(ImagePart(picture), words) for picture, words in screens]
    return {
        "retrieval_image_text": _recall(examiner, "image-text", shown),
        "retrieval_audio_text": _recall(examiner, "audio-text", [(clip, words) for clip, words in clips]),
    }


def _recall(examiner: Examiner, what: str, pairs: Sequence[tuple[Part, str]]) -> Score:
    seen = [_vector(examiner, part) for part, _ in pairs]
    told: list[Tensor] = []
    for _, words in pairs:
        told.append(_vector(examiner, TextPart(words)))
        examiner.report(f"retrieval, {what}", len(told), len(pairs))
    likeness = _centred(torch.stack(seen)) @ _centred(torch.stack(told)).T  # (pictures, texts)
    hits = likeness.argmax(1) == torch.arange(len(pairs))
    return share([float(hit) for hit in hits], 1 / len(pairs))


def _centred(vectors: Tensor) -> Tensor:
    """Take away what all of one modality have in common: it says nothing about which belongs to which."""
    return torch.nn.functional.normalize(vectors - vectors.mean(0), dim=-1)


def _vector(examiner: Examiner, part: Part) -> Tensor:
    return embed(examiner.loaded.model, *content_prompt(examiner.loaded.processor, [part]))
