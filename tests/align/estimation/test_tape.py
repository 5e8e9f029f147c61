"""The tape keeps and frees tensors as autograd does: small computations added up by hand."""

from qwen_align.align.estimation.tape import Tape


def test_what_no_later_operation_reads_is_freed() -> None:
    tape = Tape()
    x = tape.add_tensor(100.0, needs_gradient=False)
    y = tape.record([x], 10.0)
    z = tape.record([y], 20.0)
    tape.record([z], 5.0)
    assert tape.find_forward_peak(keeps_saved=False) == 30.0  # y and z; the input is not the computation's


def test_what_a_caller_still_has_is_not_freed() -> None:
    tape = Tape()
    x = tape.add_tensor(100.0, needs_gradient=False)
    y = tape.record([x], 10.0)
    z = tape.record([y], 20.0)
    tape.record([z], 5.0, holds=[y])
    assert tape.find_forward_peak(keeps_saved=False) == 35.0


def test_saved_tensors_stay_where_a_gradient_flows_and_count_once() -> None:
    for needs_gradient, saved in ((True, 110.0), (False, 0.0)):
        tape = Tape()
        x = tape.add_tensor(100.0, needs_gradient=needs_gradient)
        y = tape.record([x], 10.0, saves=[x])
        tape.record([x, y], 20.0, saves=[x, y])
        assert tape.count_saved() == saved
        assert tape.saves_input is needs_gradient


def test_the_backward_pass_holds_gradients_beside_what_is_left() -> None:
    tape = Tape()
    x = tape.add_tensor(100.0, needs_gradient=True)
    y = tape.record([x], 10.0, saves=[x], weight_gradient=7.0)
    tape.record([y], 20.0, saves=[y], temporary=3.0)
    # Last operation: saved 100 + 10, gradients of 20 and 10, 3 at its side. Then: saved 100, gradients 10, 100, 7.
    assert tape.find_backward_peak(keeps_gradients=True) == max(100 + 10 + 20 + 10 + 3, 100 + 10 + 100 + 7)


def test_gradients_of_weights_stay_or_are_added_to_earlier_ones() -> None:
    tape = Tape()
    x = tape.add_tensor(1.0, needs_gradient=False)
    y = tape.record([x], 1.0, saves=[x], weight_gradient=50.0)
    tape.record([y], 1.0, weight_gradient=40.0)
    assert tape.find_backward_peak(keeps_gradients=True) == 1 + 1 + 90
    assert tape.find_backward_peak(keeps_gradients=False) == 1 + 1 + 50
