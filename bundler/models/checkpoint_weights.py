"""Find the weights of a network in a checkpoint: the state dict, the prefix of its keys, and the naming scheme."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.checkpoint_file import CheckpointFile
from bundler.models.module_tensors import Candidate, TensorRecord
from bundler.models.other_names import TIMM, other_namings, relative
from bundler.models.pickle_interpreter import UnreadableError
from bundler.models.pickled_modules import differences, items_of
from bundler.quantization.key_matching import KeyMatch, find_matches, shown
from bundler.quantization.preparation import foreign_keys, other_shapes
from bundler.quantization.weight_names import (
    Naming,
    Shapes,
    fused_naming,
    observer_key,
    plain_naming,
    shapes_of,
    training_naming,
)
from bundler.visible import visible

__all__ = ["Network", "NetworkWeights", "network_of", "weights_in"]

TOP = "."  # value of --weights-key for a state dict at the top level
_MOST_COMPARED = 4
_SAVE = "Save the weights as a state dict: torch.save(model.state_dict(), FILE)."
_FLOAT = "Pass the checkpoint of the float model, from before `convert`; bundler quantizes it."


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network whose weights are searched for.

    Args:
        name: of the model.
        model: with `num_classes` classes; its tensors may be on the meta device.
        num_classes: of `model`.
        asked_classes: value of --num-classes; None to take the number from the checkpoint.
        class_slopes: growth of a tensor's first dimension per class, by key.
    """

    name: str
    model: nn.Module
    num_classes: int
    asked_classes: int | None
    class_slopes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Size of its tensors in float32, in bytes."""
        return sum(4 * value.numel() for value in self.model.state_dict().values())


@dataclass(frozen=True, kw_only=True)
class NetworkWeights:
    """The weights with their types in the file and the model's keys; notes and warnings for the user."""

    tensors: Mapping[str, Tensor]
    num_classes: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def network_of(
    name: str, build: Callable[[int], nn.Module], *, num_classes: int, asked_classes: int | None, is_ours: bool
) -> Network:
    """Return the network that `build` makes for a number of classes.

    A network of this package is built on the meta device, which takes no time; another package's may need real tensors.
    """
    with torch.device("meta" if is_ours else "cpu"):
        model, wider = build(num_classes), build(num_classes + 1)
    shapes, more = shapes_of(model.state_dict()), shapes_of(wider.state_dict())
    slopes = {
        key: more[key][0] - shape[0]
        for key, shape in shapes.items()
        if shape and len(more.get(key, ())) == len(shape) and more[key] != shape and more[key][1:] == shape[1:]
    }
    return Network(name=name, model=model, num_classes=num_classes, asked_classes=asked_classes, class_slopes=slopes)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A network found in a candidate, with its number of classes; `wrong` are keys with other shapes."""

    candidate: Candidate
    match: KeyMatch
    classes: int
    wrong: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its value of --weights-key: the wrapper's keys, then the prefix."""
        return _joined(self.candidate.path, self.match.prefix.removesuffix(".")) or TOP

    @property
    def records(self) -> dict[str, TensorRecord]:
        keys = self.match.keys
        return {key: self.candidate.tensors[keys[key]] for key in self.match.naming.shapes if key in keys}

    def is_called(self, name: str) -> bool:
        return name in (self.label, self.candidate.path, self.match.prefix.removesuffix(".")) or self.label.startswith(
            f"{name}."
        )


def weights_in(file: CheckpointFile, network: Network, *, key: str | None) -> NetworkWeights:
    """Return the weights of `network` in a checkpoint.

    Args:
        file: an open checkpoint.
        network: that is searched for.
        key: value of --weights-key, which chooses between several state dicts.

    Raises:
        CheckpointError: the file has no, several, incomplete or quantized weights, or those of another network.
    """
    candidates = [_without_observers(candidate) for candidate in file.candidates]
    if not candidates:
        raise CheckpointError(
            f"the checkpoint {file.named} contains no state dict (a mapping from names to tensors) and no module with tensors",
            next_step=_SAVE,
        )
    places = _all_places(candidates, network)
    if not any(not place.wrong for place in places):
        _refuse_converted(file, candidates)
        if places:
            raise _other_shapes(file, places[0], network)
        raise _foreign(file, candidates, network)
    place = _chosen(file, [place for place in places if not place.wrong], key)
    _refuse_problems(file, place)
    _refuse_other_classes(file, place, network)
    _refuse_other_modules(file, place, network)
    warnings = _warnings(file, place, network)
    left = _left_out(file, place, network, asked=key is not None)
    tensors = file.load(place.records)
    notes = tuple(_notes(place, network, left))
    return NetworkWeights(tensors=tensors, num_classes=place.classes, notes=notes, warnings=warnings)


def _all_places(candidates: Sequence[Candidate], network: Network) -> list[_Place]:
    """Return the matches of the first naming scheme that has one; otherwise plain matches with other shapes."""
    found: list[_Place] = []
    for naming in _namings(network):
        places = [place for candidate in candidates for place in _places(candidate, naming, network)]
        if not places and len(candidates) > 1:
            places = _places(_together(candidates), naming, network)
        if any(not place.wrong for place in places):
            fitting = [place for place in places if not place.wrong]
            return [place for place in fitting if not _inside(place)] or fitting
        if naming.form == "plain":
            found = places
    return found


def _namings(network: Network) -> Iterable[Naming]:
    """Yield the naming schemes in which the network may be saved, most common first; the last ones are slow to compute."""
    yield plain_naming(network.model)
    yield from other_namings(network.name, shapes_of(network.model.state_dict()))
    if hasattr(network.model, "fuse_model"):
        yield training_naming(network.model)
        yield fused_naming(network.model, is_qat=False)


def _without_observers(candidate: Candidate) -> Candidate:
    return replace(candidate, tensors={key: item for key, item in candidate.tensors.items() if not observer_key(key)})


def _together(candidates: Sequence[Candidate]) -> Candidate:
    """Return all state dicts of a checkpoint as one, for files that store a backbone and a head separately."""
    tensors = {_joined(candidate.path, key): item for candidate in candidates for key, item in candidate.tensors.items()}
    return Candidate(path="", tensors=tensors)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _places(candidate: Candidate, naming: Naming, network: Network) -> list[_Place]:
    given = {key: record.shape for key, record in candidate.tensors.items()}
    found = []
    for match in find_matches(naming, given):
        wrong = tuple(
            key for key, full in match.keys.items() if given[full] != naming.shapes[key] and not candidate.tensors[full].problem
        )
        classes = _classes(wrong, match, given, network)
        found.append(
            _Place(candidate=candidate, match=match, classes=classes or network.num_classes, wrong=() if classes else wrong)
        )
    return found


def _classes(wrong: Sequence[str], match: KeyMatch, given: Shapes, network: Network) -> int | None:
    """Return the number of classes that explains all different shapes; None if there is none."""
    numbers = set()
    for key in wrong:
        shape, expected = given[match.keys[key]], match.naming.shapes[key]
        slope = network.class_slopes.get(key)
        if not slope or len(shape) != len(expected) or shape[1:] != expected[1:] or (shape[0] - expected[0]) % slope:
            return None
        numbers.add(network.num_classes + (shape[0] - expected[0]) // slope)
    if len(wrong) not in (0, len(network.class_slopes)) or len(numbers) > 1 or min(numbers, default=1) < 1:
        return None
    return next(iter(numbers), network.num_classes)


# Choosing one of several matches


def _chosen(file: CheckpointFile, places: list[_Place], key: str | None) -> _Place:
    if key is not None:
        named = [place for place in places if place.label == key] or [place for place in places if place.is_called(key)]
        if not named:
            known = ", ".join(dict.fromkeys(visible(place.label, 60) for place in places))
            raise CheckpointError(
                f"the checkpoint {file.named} has no weights of this network under the key {visible(key, 60)!r}",
                next_step=f"Pass --weights-key with one of: {known} (`{TOP}` is the top level of the file).",
            )
        places = named
    distinct: list[_Place] = []
    for place in places:
        if any(place.records == other.records for other in distinct) or any(_holds(other, place) for other in distinct):
            continue
        distinct.append(place)
    if len(distinct) > 1:
        distinct = _preferred(distinct) or distinct
    if len(distinct) > 1 and not _are_equal(file, distinct):
        labels = [visible(place.label, 60) for place in distinct]
        average = next((label for label in labels if re.search(r"ema|swa|average", label, re.IGNORECASE)), None)
        hint = " (an average of the weights, which is usually more accurate)" if average else ""
        raise CheckpointError(
            f"the checkpoint {file.named} contains weights of this network {len(distinct)} times, with different values: "
            f"{', '.join(labels[:6])}",
            next_step=f"Choose one of them, for example --weights-key {average or labels[0]}{hint}.",
        )
    return distinct[0]


def _holds(outer: _Place, inner: _Place) -> bool:
    """Return whether a network is a part of another match, as a teacher is of its student."""
    return outer.candidate is inner.candidate and inner.match.prefix.startswith(outer.match.prefix)


def _preferred(places: Sequence[_Place]) -> list[_Place]:
    """Return the module `ema` if the only other one is `model`, as in YOLOv5's files, whose loader prefers it."""
    paths = {place.candidate.path for place in places if place.candidate.is_module}
    return [place for place in places if place.candidate.path == "ema"] if paths == {"ema", "model"} else []


def _are_equal(file: CheckpointFile, places: Sequence[_Place]) -> bool:
    if len(places) > _MOST_COMPARED or any(place.records.keys() != places[0].records.keys() for place in places):
        return False
    if any(record.problem for place in places for record in place.records.values()):
        return False
    first, *rest = (file.load(place.records) for place in places)
    return all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for other in rest for key, value in first.items()
    )


# Refusals


def _refuse_converted(file: CheckpointFile, candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        quantized = [key for key, record in candidate.tensors.items() if record.problem == "is quantized"]
        scales = [key for key in candidate.tensors if f"{key.removesuffix('.scale')}.zero_point" in candidate.tensors]
        quantized += [key for key, record in candidate.tensors.items() if ".nn.quantized." in record.problem]
        quantized += [key for key, record in candidate.tensors.items() if ".intrinsic.quantized." in record.problem]
        if quantized or len(scales) > 1:
            first = visible(quantized[0] if quantized else scales[0], 100)
            raise CheckpointError(
                f"the checkpoint {file.named} is of a quantized (converted) model: {first} "
                f"{'is quantized' if quantized else 'is the scale of an INT8 layer'}",
                next_step=_FLOAT,
            )


def _refuse_problems(file: CheckpointFile, place: _Place) -> None:
    broken = {full: record for full in place.match.keys.values() if (record := place.candidate.tensors[full]).problem}
    if any(record.problem == "is quantized" for record in broken.values()):
        _refuse_converted(file, [place.candidate])
    for full, record in broken.items():
        raise file.problem(full, record)


def _refuse_other_classes(file: CheckpointFile, place: _Place, network: Network) -> None:
    if network.asked_classes is not None and place.classes != network.asked_classes:
        key = next(iter(network.class_slopes))
        expected = list(place.match.naming.shapes[key])
        found = list(place.candidate.tensors[place.match.keys[key]].shape)
        raise CheckpointError(
            f"the checkpoint {file.named} has {place.classes} classes, but --num-classes is {network.asked_classes}: "
            f"{key} is {found} in the checkpoint and {expected} in the model",
            next_step=f"Pass --num-classes {place.classes}, or omit the option: the number is read from the checkpoint.",
        )


def _other_shapes(file: CheckpointFile, place: _Place, network: Network) -> CheckpointError:
    _refuse_problems(file, place)
    given = {key: place.candidate.tensors[full].shape for key, full in place.match.keys.items()}
    error = other_shapes(place.match.naming.shapes, given)
    return CheckpointError(f"{file.named}: {error.message} (model {network.name})", next_step=error.next_step)


def _foreign(file: CheckpointFile, candidates: Sequence[Candidate], network: Network) -> CheckpointError:
    """Return the error for a checkpoint that lacks keys of the network, from the candidate with the most of them."""
    plain = plain_naming(network.model)
    namings = [plain, fused_naming(network.model, is_qat=False)] if hasattr(network.model, "fuse_model") else [plain]

    def hits(candidate: Candidate) -> tuple[int, str]:
        prefixes = Counter[str]()
        for full in candidate.tensors:
            parts = full.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in plain.shapes:
                    prefixes[".".join([*parts[:start], ""])] += 1
        prefix, count = max(prefixes.items(), key=lambda item: item[1], default=("", 0))
        return count, prefix

    best = max(candidates, key=lambda candidate: (hits(candidate)[0], len(candidate.tensors)))
    _, prefix = hits(best)
    for full, record in best.tensors.items():
        if record.problem and full.removeprefix(prefix) in plain.shapes:
            return file.problem(full, record)
    given = {full.removeprefix(prefix): record.shape for full, record in best.tensors.items() if full.startswith(prefix)}
    own = [
        name
        for naming in (plain, *other_namings(network.name, plain.shapes))
        for names in naming.names.values()
        for name in names
    ]
    what = relative(best.tensors, own)
    if what is not None:
        return CheckpointError(
            f"the checkpoint {file.named} is not of {network.name} but of {what}",
            next_step="Choose the model that it was trained for, or provide your own architecture as a plug-in (README).",
        )
    for key in network.class_slopes:  # another number of classes alone is no difference
        if key in given and len(given[key]) == len(plain.shapes[key]) and given[key][1:] == plain.shapes[key][1:]:
            given[key] = plain.shapes[key]
    error = foreign_keys(*(naming.shapes for naming in namings), given=given)
    where = _joined(best.path, prefix.removesuffix("."))
    place = f" ({visible(where, 80)})" if where else ""
    return CheckpointError(f"{file.named}{place}: {visible(error.message, 500)}", next_step=error.next_step)


def _refuse_other_modules(file: CheckpointFile, place: _Place, network: Network) -> None:
    """Raise a CheckpointError if a pickled network has the keys of the model but computes something else."""
    if not place.candidate.is_module or place.match.parts:
        return
    try:
        different = differences(place.candidate.value, place.match.prefix, network.model)
    except UnreadableError as error:
        raise file.unreadable(error) from error
    if different:
        more = f", and {len(different) - 2} more differences" if len(different) > 2 else ""
        raise CheckpointError(
            f"the checkpoint {file.named} has the keys of {network.name} but computes something else: "
            f"{visible('; '.join(different[:2]), 300)}{more}",
            next_step="Provide your own architecture as a plug-in (README).",
        )


def _warnings(file: CheckpointFile, place: _Place, network: Network) -> tuple[str, ...]:
    """Return warnings; CheckpointError if the file states that it is of another network with the same names."""
    if place.match.naming.form != TIMM:
        return ()
    entries = items_of(file.description)
    arch = next((text for key in ("arch", "architecture", "model_name") if isinstance(text := entries.get(key), str)), None)
    if arch is not None and arch.startswith("tf_"):
        raise CheckpointError(
            f"the checkpoint {file.named} is of timm's {visible(arch, 60)}, which pads like TensorFlow: with the same weights, "
            f"{network.name} gives other outputs",
            next_step=f"Train timm's {visible(arch.removeprefix('tf_'), 60)} or torchvision's {network.name} instead.",
        )
    if arch is not None or network.name == "mobilenet_v2":
        return ()
    return (f"timm's tf_{network.name} has the same names but other padding: its weights would give wrong outputs",)


def _left_out(file: CheckpointFile, place: _Place, network: Network, *, asked: bool) -> list[str]:
    """Return the tensors that do not belong to the network; CheckpointError if its outputs may depend on them.

    An additional tensor within the network's own children belongs to another network. Layers beside it may process its outputs
    (a second classifier), unless they take images themselves, as a teacher does.
    """
    match = place.match
    others = _others(place)
    if inside := _inside(place):
        raise CheckpointError(
            f"the checkpoint {file.named} is of another network: it has all keys of {network.name} and {len(inside)} more in "
            f"its modules ({visible(shown(inside), 300)})",
            next_step="Choose the model that it was trained for, or provide your own architecture as a plug-in (README).",
        )
    groups: dict[str, list[str]] = {}
    for full in others:
        groups.setdefault(_group(full, match.prefix), []).append(full)
    tensors = place.candidate.tensors
    for full_keys in groups.values():
        shapes = [tensors[full].shape for full in full_keys if full.endswith("weight")]
        takes_images = any(len(shape) == 4 and shape[1] == 3 for shape in shapes)
        if any(len(shape) >= 2 for shape in shapes) and not takes_images and not asked:
            raise CheckpointError(
                f"the checkpoint {file.named} has all keys of {network.name} and {len(full_keys)} of layers beside it "
                f"({visible(shown(full_keys), 300)}), on which its outputs may depend",
                next_step=f"If the network works without them, add --weights-key {visible(place.label, 60)}; otherwise provide "
                "your own architecture as a plug-in (README).",
            )
    return others


def _others(place: _Place) -> list[str]:
    return [full for full in place.match.others(place.candidate.tensors) if not full.endswith("num_batches_tracked")]


def _inside(place: _Place) -> list[str]:
    """Return the additional tensors within the network's own children, which only another network has."""
    children = {key.partition(".")[0] for key in place.match.naming.shapes}
    return [full for full in _others(place) if _child(full, place.match.prefix) in children]


def _child(full: str, prefix: str) -> str | None:
    return full.removeprefix(prefix).partition(".")[0] if full.startswith(prefix) else None


def _group(full: str, prefix: str) -> str:
    """Return a key up to the first name in which it differs from the prefix."""
    names, own = full.split("."), prefix.split(".")
    common = 0
    while common < min(len(names), len(own)) and names[common] == own[common]:
        common += 1
    return ".".join(names[: common + 1])


# Notes for the user


def _notes(place: _Place, network: Network, left: Sequence[str]) -> Iterable[str]:
    match = place.match
    facts = []
    if place.candidate.path:
        facts.append(f"{visible(place.candidate.path, 60)} of the file")
    if match.prefix:
        count = sum(full.startswith(match.prefix) for full in match.keys.values())
        facts.append(f"prefix {visible(match.prefix, 60)!r} removed from {count} keys")
    facts += [f"{child} from {visible(prefix + child, 60)!r}" for child, prefix in match.parts.items()]
    facts += [f"{key} from {visible(full, 60)!r}" for key, full in match.renamed.items()]
    if match.naming.form != "plain":
        facts.append(f"names in the {match.naming.form} form")
    if facts:
        yield f"weights: {', '.join(facts)}"
    if left:
        tensors = "one tensor that is" if len(left) == 1 else f"{len(left)} tensors that are"
        yield f"ignored: {tensors} not of this network ({visible(shown(left), 300)})"
    types = Counter(
        str(record.dtype).removeprefix("torch.")
        for record in place.records.values()
        if record.dtype.is_floating_point and record.dtype != torch.float32
    )
    for name, count in types.items():
        yield f"converted to float32: {count} tensors of {name}"
    if place.classes != network.num_classes:
        yield f"{place.classes} classes, from the checkpoint's last layer"
