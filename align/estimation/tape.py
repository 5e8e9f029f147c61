"""Follows a computation tensor by tensor and counts the bytes that are alive, as autograd keeps and frees them.

A tape is a list of operations with the sizes of what they read and make. It tells what stays for the backward pass and
how much is alive at the worst moment, without computing anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Tensor:
    """A tensor on the tape: its number, its bytes, and whether a gradient flows back to it."""

    number: int
    n_bytes: float
    needs_gradient: bool


@dataclass(frozen=True)
class Operation:
    """An operation on the tape. `saved` are the tensors that its backward pass reads.

    temporary: bytes alive only while its backward pass runs. weight_gradient: bytes of the gradient of its weight.
    gradient_cast: bytes of that gradient in the precision it is computed in, where it is another. held: tensors that
    are alive until then because the caller of the code still has them.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    saved: tuple[Tensor, ...]
    temporary: float
    weight_gradient: float
    gradient_cast: float
    held: tuple[Tensor, ...] = ()


@dataclass
class Tape:
    """The operations of a computation, in order."""

    operations: list[Operation] = field(default_factory=list)
    _count: int = 0

    def add_tensor(self, n_bytes: float, *, needs_gradient: bool) -> Tensor:
        """Adds a tensor that is there before the computation begins."""
        self._count += 1
        return Tensor(self._count, n_bytes, needs_gradient)

    def record(
        self,
        inputs: Sequence[Tensor],
        n_bytes: float,
        *,
        saves: Sequence[Tensor] = (),
        temporary: float = 0.0,
        weight_gradient: float = 0.0,
        gradient_cast: float = 0.0,
        holds: Sequence[Tensor] = (),
    ) -> Tensor:
        """Records an operation and returns its output. `saves` may be kept for its backward pass, if it has one."""
        needs_gradient = weight_gradient > 0 or any(one.needs_gradient for one in inputs)
        output = self.add_tensor(n_bytes, needs_gradient=needs_gradient)
        saved = tuple(saves) if needs_gradient else ()
        operation = Operation(tuple(inputs), output, saved, temporary, weight_gradient, gradient_cast, tuple(holds))
        self.operations.append(operation)
        return output

    def save_output(self, *tensors: Tensor) -> None:
        """Marks tensors, the output among them, as kept for the backward pass of the operation recorded last."""
        last = self.operations.pop()
        kept = (*last.saved, *tensors) if last.output.needs_gradient else ()
        self.operations.append(replace(last, saved=kept))

    @property
    def saves_input(self) -> bool:
        """Returns whether what the computation begins with is kept for its backward pass."""
        made = {operation.output for operation in self.operations}
        first = self.operations[0].inputs[0]
        return first not in made and any(first in operation.saved for operation in self.operations)

    def count_saved(self) -> float:
        """Returns the bytes that are kept for the backward pass, the inputs of the computation among them if saved."""
        return sum(one.n_bytes for one in {one for operation in self.operations for one in operation.saved})

    def find_forward_peak(self, *, keeps_saved: bool) -> float:
        """Returns the most bytes alive during the forward pass, beyond the inputs of the computation.

        keeps_saved: gradients will be asked for, so that what the backward pass reads stays.
        """
        last_use = {one: number for number, op in enumerate(self.operations) for one in (*op.inputs, *op.held)}
        kept = {one for op in self.operations for one in op.saved} if keeps_saved else set[Tensor]()
        made = {op.output for op in self.operations}
        alive = peak = 0.0
        for number, operation in enumerate(self.operations):
            alive += operation.output.n_bytes
            peak = max(peak, alive)
            for one in {*operation.inputs, *operation.held} & made - kept:
                alive -= one.n_bytes if last_use[one] == number else 0.0
        return peak

    def find_backward_peak(self, *, keeps_gradients: bool) -> float:
        """Returns the most bytes alive during the backward pass: what is saved, gradients of tensors and of weights.

        The gradient of the output, with which it begins, is among them. keeps_gradients: those of weights stay, where
        they are not added to earlier ones, which are not counted here.
        """
        users: dict[Tensor, int] = {}
        for operation in self.operations:
            for one in set(operation.saved):
                users[one] = users.get(one, 0) + 1
        alive = self.count_saved()
        gradients = {self.operations[-1].output}
        alive += self.operations[-1].output.n_bytes
        peak = alive
        for operation in reversed(self.operations):
            if not operation.output.needs_gradient:
                continue
            new = [one.n_bytes for one in operation.inputs if one.needs_gradient]
            peak = max(
                peak, alive + sum(new) + operation.temporary + operation.weight_gradient + operation.gradient_cast
            )
            for one in operation.inputs:  # a second gradient of a tensor is added to the first in place
                if one.needs_gradient and one not in gradients:
                    gradients.add(one)
                    alive += one.n_bytes
            alive += operation.weight_gradient * keeps_gradients - operation.output.n_bytes
            for one in set(operation.saved):
                users[one] -= 1
                alive -= one.n_bytes if not users[one] else 0.0
        return peak
