"""Several LoRA trainings in one process, which share the passes over their frozen base model.

    pack = Pack(base, max_tokens=2048)              # a base model without adapters
    with pack.member():                             # on a thread of each training
        engine = PackedEngine(pack, model, objective, settings)
        fit(engine, ...)
        with pack.away():                           # while it waits for something else than the pack
            ...

One thread of the pack computes. It waits until all members that are not away want something, and joins their forward
and backward passes into rows of at most `max_tokens` tokens. Members may join, leave, fail and pause at any time: the
other parts of a row change no member's result, except for rounding.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from models.errors import RayconteurError
from models.kernels.lora import fuse_lora
from models.kernels.loss import StatesModel, fuse_head, predicting_states
from models.kernels.packed_lora import Adapter, Factors, PackedLayers, Part
from models.kernels.rows import is_read_in_rows
from models.objectives.base import Loss
from models.packing import PackedBatch, side_by_side
from models.training.engine import MODEL_FOLDER, Sums, adamw
from models.training.snapshot import Write, copied, model_writer

_STATE = "packed.pt"


@dataclass(frozen=True)
class _Pass:
    """A member's wish: the sums of a batch, and for training the gradient of loss / weight."""

    weights: "_Weights"
    objective: Loss
    batch: PackedBatch
    weight: float | None
    """None: measures, without gradients and dropout"""
    found: Future[Sums] = field(default_factory=Future)

    @property
    def num_tokens(self) -> int:
        return sum(self.batch.sequence_lengths)


@dataclass(frozen=True)
class _Call:
    """A member's wish: a function to call on the thread that computes."""

    function: Callable[[], Any]
    found: Future[Any] = field(default_factory=Future)

    def results(self) -> list[Any]:
        return [self.function()]


class Pack:
    """A frozen base model, and the thread that computes with it."""

    def __init__(self, base: Any, max_tokens: int, num_threads: int = 1) -> None:
        """`num_threads` of the pack's thread. Other threads should compute with one: libgomp's threads stop waiting
        actively in the whole process as soon as there are more of them than cores, and passes of many small
        operations then take about 1.5 times as long (findings/torch_waiting_threads_count.sh).
        """
        first = next(base.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.loading = threading.Lock()
        """for members that use torch's global random generator"""
        self.replying = threading.Lock()
        """for members that generate replies"""
        fuse_head(base)
        self._base = base.train().requires_grad_(requires_grad=False)
        self._layers = PackedLayers(base)
        self.max_tokens = max_tokens
        self._changed = threading.Condition()
        self._present = 0
        self._here = threading.local()
        self._wishes: list[_Pass | _Call] = []
        self._is_closed = False
        self._num_threads = num_threads
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def member(self) -> Iterator[None]:
        """Within this context, the thread belongs to the pack, which waits for its wishes. From then on, the thread
        itself computes with one of torch's threads.
        """
        torch.set_num_threads(1)
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within this context, the pack does not wait for the member of this thread."""
        if getattr(self._here, "is_away", False):
            yield
            return
        self._here.is_away = True
        self._count(-1)
        try:
            yield
        finally:
            self._here.is_away = False
            self._count(+1)

    def compute(self, wish: "_Pass | _Call") -> Any:
        """A wish's result, for members."""
        with self._changed:
            self._wishes.append(wish)
            self._changed.notify_all()
        return wish.found.result()

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function that the pack's thread calls."""
        return self.compute(_Call(function))

    def close(self) -> None:
        """End the thread; members must have left."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _count(self, change: int) -> None:
        with self._changed:
            self._present += change
            self._changed.notify_all()

    def _run(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # it is another one in each thread
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or 0 < self._present <= len(self._wishes))
                if self._is_closed:
                    return
                calls = [wish for wish in self._wishes if isinstance(wish, _Call)]
                passes = [wish for wish in self._wishes if isinstance(wish, _Pass)]
                # Members that have called join the passes of the others.
                self._wishes = list(passes) if calls else []
            torch.set_num_threads(self._num_threads)  # members have set the part of it that all threads share
            if calls:
                for call in calls:
                    _settle([call], call.results)
                continue
            for trains in (True, False):
                for row in _rows([each for each in passes if (each.weight is not None) == trains], self.max_tokens):
                    _settle(row, functools.partial(self._compute, row, trains))

    def _compute(self, row: Sequence[_Pass], trains: bool) -> list[Sums]:
        batch = side_by_side([each.batch for each in row])
        ends = [*accumulate(each.num_tokens for each in row)]
        if self._base.training != trains:  # some models compute something else in training, as gemma3n does
            self._base.train(trains)
        parts = [Part(end - each.num_tokens, end, each.weights.adapter) for end, each in zip(ends, row, strict=True)]
        with torch.set_grad_enabled(trains), self._layers.adapted(parts, draws_dropout=trains):
            sizes = [len(each.batch.predictors) for each in row]
            states = torch.split(predicting_states(self._base, batch), sizes)
            found = [
                each.objective.loss_sum(StatesModel(self._base, mine), each.batch)
                for each, mine in zip(row, states, strict=True)
            ]
            if trains:
                shares = [loss / each.weight for (loss, _), each in zip(found, row, strict=True) if each.weight]
                torch.autograd.backward(shares)
                for each in row:
                    each.weights.gather()
        return [{"loss": float(loss.detach()), **figures} for loss, figures in found]


def _settle(wishes: Sequence[_Pass | _Call], compute: Callable[[], Sequence[Any]]) -> None:
    try:
        results = compute()
    except BaseException as error:  # any error belongs to the members, which wait for it
        for wish in wishes:
            wish.found.set_exception(error)
        return
    for wish, result in zip(wishes, results, strict=True):
        wish.found.set_result(result)


def _rows(passes: Sequence[_Pass], max_tokens: int) -> Iterator[Sequence[_Pass]]:
    """The passes in rows of at most `max_tokens` tokens (a longer pass has its own row), of even lengths."""
    if not passes:
        return
    total = sum(each.num_tokens for each in passes)
    share, row, tokens = total / -(-total // max_tokens), list[_Pass](), 0
    for each in passes:
        if row and (tokens + each.num_tokens > max_tokens or tokens + each.num_tokens / 2 > share):
            yield row
            row, tokens = [], 0
        row.append(each)
        tokens += each.num_tokens
    yield row


@dataclass(frozen=True)
class PackedSettings:
    """The fields of `train` that the engine uses."""

    weight_decay: float
    gradient_clip: float
    seed: int
    """of dropout on this worker"""
    group: Any = None
    """the torch.distributed group of this training's workers; None: this process is the only one"""


class PackedEngine:
    """`models.training.engine.TrainingEngine` for a member of a pack: an adapter and its optimizer."""

    def __init__(self, pack: Pack, model: Any, objective: Loss, settings: PackedSettings) -> None:
        """`model`: a PEFT model of the pack's base with a LoRA adapter; raises RayconteurError for another one."""
        if why_not := why_not_packed(model):
            raise RayconteurError(f"tune.pack: {why_not}; set tune.pack: 1")
        fuse_lora(model)
        self.model = model.train()
        self.device = pack.device
        self._pack, self._objective, self._settings = pack, objective, settings
        group = settings.group
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.num_workers = 1 if group is None else torch.distributed.get_world_size(group)
        self._generator = torch.Generator(self.device).manual_seed(settings.seed)
        self._weights = _Weights(model, pack.dtype, self._generator)
        self._optimizer = adamw([self._weights.all], settings.weight_decay)

    def accumulate(self, batch: PackedBatch, step_weight: float, is_last: bool = True) -> Sums:
        found: Sums = self._pack.compute(_Pass(self._weights, self._objective, batch, step_weight))
        return found

    def update(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._settings.group is not None:
            with self._pack.away():
                torch.distributed.all_reduce(self._weights.gradient, group=self._settings.group)
        norm: float = self._pack.call(self._apply)
        return norm

    def skip(self) -> None:
        self._weights.all.grad = None

    def measure(self, batch: PackedBatch) -> Sums:
        found: Sums = self._pack.compute(_Pass(self._weights, self._objective, batch, None))
        return found

    def total(self, values: list[float]) -> list[float]:
        if self._settings.group is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        with self._pack.away():
            torch.distributed.all_reduce(tensor, group=self._settings.group)
        return [float(value) for value in tensor]

    def largest(self, value: float) -> float:
        most: float = max(self.gather(value))
        return most

    def gather(self, value: Any) -> list[Any]:
        if self._settings.group is None:
            return [value]
        values: list[Any] = [None] * self.num_workers
        with self._pack.away():
            torch.distributed.all_gather_object(values, value, group=self._settings.group)
        return values

    def gb_to_come(self) -> float:
        return 0.0 if self._optimizer.state else 8 * self._weights.all.numel() / 1e9

    def snapshot(self) -> Write:
        names = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        weights = copied({name: weight for name, weight in self.model.state_dict().items() if name in names})
        state = {"weights": weights, "optimizer": copied(self._optimizer.state_dict())}
        random, write_model = self._generator.get_state(), model_writer(self.model, weights)

        def write(folder: Path) -> None:
            torch.save(random, folder / f"random_{self.rank}.pt")
            if self.rank == 0:
                torch.save(state, folder / _STATE)
                write_model(folder / MODEL_FOLDER)

        return write

    def load(self, folder: Path) -> None:
        state = torch.load(folder / _STATE, weights_only=False)
        self.model.load_state_dict(state["weights"], strict=False)
        self._weights.update()
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["weight_decay"] = self._settings.weight_decay
        if (random := folder / f"random_{self.rank}.pt").is_file():
            self._generator.set_state(torch.load(random))

    def close(self) -> None:
        """Free the model and its optimizer."""
        del self.model, self._weights, self._optimizer

    def _apply(self) -> float:
        norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(
            [self._weights.all], self._settings.gradient_clip or float("inf")
        )
        self._optimizer.step()
        self._weights.all.grad = None
        self._weights.update()
        return float(norm)


class _Weights:
    """An adapter's weights: one float32 tensor for the optimizer, of which the PEFT model's are views, and factors in
    the base's dtype for the passes.
    """

    def __init__(self, model: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
        layers = _layers(model)
        own = [weight for down, up, *_ in layers.values() for weight in (down, up)]
        self.all = torch.nn.Parameter(torch.cat([weight.detach().float().reshape(-1) for weight in own]))
        for weight, part in zip(own, self._split(self.all.detach(), own), strict=True):
            weight.data = part
        self._used = self.all.detach() if dtype == torch.float32 else self.all.detach().to(dtype)
        self._factors = [part.requires_grad_() for part in self._split(self._used, own)]
        pairs = zip(self._factors[::2], self._factors[1::2], strict=True)
        self.adapter = Adapter(
            {
                name: Factors(down, up, scale, dropout)
                for (name, (*_, scale, dropout)), (down, up) in zip(layers.items(), pairs, strict=True)
            },
            generator,
        )

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient so far, float32."""
        assert self.all.grad is not None
        return self.all.grad

    def gather(self) -> None:
        """Add the gradients of a pass to those before."""
        found = [
            torch.zeros_like(each) if each.grad is None else each.grad  # None: a layer that no token has used
            for each in self._factors
        ]
        flat = torch.cat([each.reshape(-1) for each in found]).float()
        self.all.grad = flat if self.all.grad is None else self.all.grad.add_(flat)
        for each in self._factors:
            each.grad = None

    def update(self) -> None:
        """Let passes use the weights as they are now."""
        if self._used.dtype != torch.float32:
            with torch.no_grad():
                self._used.copy_(self.all)

    @staticmethod
    def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        parts = torch.split(flat, [each.numel() for each in like])
        return [part.view(each.shape) for part, each in zip(parts, like, strict=True)]


def is_packed(checkpoint: Path) -> bool:
    """Whether a member of a pack has written this checkpoint."""
    return (checkpoint / _STATE).is_file()


def why_not_packed(model: Any) -> str:
    """Why a PEFT model cannot be a member of a pack; empty if it can. Does not read its weights."""
    own, layers = model.get_base_model(), _layers(model)
    if getattr(own, "reads_in_rows", "packed") != "packed" or is_read_in_rows(own):
        return "the base model does not read conversations side by side in a row"
    for name, layer in own.named_modules():
        if isinstance(layer, torch.nn.Dropout) and layer.p > 0 and ".lora_dropout." not in f".{name}":
            return f"the base model has dropout of its own ({name})"
    if dropout := getattr(own.config.get_text_config(), "attention_dropout", 0.0):
        return f"the base model has dropout of its own (attention_dropout {dropout})"
    packed = {id(factor) for down, up, *_ in layers.values() for factor in (down, up)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in packed:
            return f"{name} is not a factor of a linear layer's LoRA"
    if outside := [name for name in layers if not name.startswith(f"{own.base_model_prefix}.")]:
        return f"{outside[0]} belongs to the head, which computes only the supervised tokens"
    if experts := [name for name in layers if ".experts." in name]:
        return f"{experts[0]} computes only some of the tokens"
    return ""


def _layers(model: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter, float, float]]:
    """Both factors, the scale and the dropout of the adapter by the name of their layer in the base model."""
    from peft.tuners.lora.layer import Linear

    base, [name] = model.get_base_model(), model.active_adapters
    found = {}
    for path, layer in base.named_modules():
        if isinstance(layer, Linear) and type(layer.base_layer) is torch.nn.Linear and not layer.lora_variant:
            dropout = getattr(layer.lora_dropout[name], "p", 0.0)
            found[path] = (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], dropout)
    return found
