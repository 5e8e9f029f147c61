"""The parts of TRL and transformers we lean on beyond documented constructors: a new version must not move them."""

import inspect

import pytest
from transformers import Trainer
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTTrainer

from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.reference_logps import COLUMNS


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("trainer", [SFTTrainer, DPOTrainer, GRPOTrainer])
def test_checkpoints_are_saved_through_the_method_we_wrap(trainer: type) -> None:
    assert parameters(trainer._save_checkpoint) == parameters(AtomicCheckpoints._save_checkpoint)
    assert parameters(trainer._get_output_dir) == parameters(AtomicCheckpoints._get_output_dir)
    assert "super()._save_checkpoint" in inspect.getsource(trainer._save_checkpoint)


def test_a_checkpoint_is_written_where_we_say_and_rotated_by_us() -> None:
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir(trial=trial)" in source
    assert "save_total_limit=self.args.save_total_limit" in source  # None, so nothing is rotated inside


def test_dpo_prepares_its_data_in_the_method_we_replace() -> None:
    assert parameters(DPOTrainer._prepare_dataset) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    source = inspect.getsource(DPOTrainer._prepare_dataset)
    assert all(f'output["{column}"]' in source for column in ("prompt_ids", "chosen_ids", "rejected_ids"))


def test_dpo_computes_its_loss_in_the_method_we_extend_and_from_the_outputs_we_read() -> None:
    assert parameters(DPOTrainer._compute_loss) == ["self", "model", "inputs", "return_outputs"]
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert "outputs = model(**model_kwargs, labels=labels, fused_lm_head=True)" in source
    assert 'labels = inputs["input_ids"].masked_fill(completion_mask == 0, -100)' in source
    assert "per_token_logps = outputs.log_probs[:, -seq_len:]" in source
    assert "chosen_logps, rejected_logps = logps.chunk(2, dim=0)" in source
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"):
        assert f'self._metrics[mode]["{name}"].append(' in source


def test_dpo_loads_no_reference_where_its_log_probabilities_come_with_the_rows() -> None:
    """Nor with adapters: a loss without a reference, and one whose log-probs were computed before training."""
    assert parameters(DPOTrainer._precompute_ref_logps) == ["self", "dataset", "name", "batch_size"]
    assert "or (args.precompute_ref_log_probs and not self.is_fsdp_enabled)" in inspect.getsource(DPOTrainer.__init__)


def test_the_reward_trainer_subtracts_a_column_of_margins() -> None:
    source = inspect.getsource(RewardTrainer.compute_loss)
    assert 'logsigmoid(rewards_chosen - rewards_rejected - inputs["margin"])' in source
    assert '"margin"' in inspect.getsource(RewardTrainer._set_signature_columns_if_needed)


def test_sft_takes_rows_that_are_tokenized() -> None:
    assert 'is_processed = "input_ids" in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)


def test_grpo_calls_the_rollout_function_with_repeated_prompts_and_wants_three_columns() -> None:
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.rollout_func(prompts, self)" in source
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source
    assert "reward if reward is not None else torch.nan" in inspect.getsource(GRPOTrainer._calculate_rewards)


def test_dpo_scores_with_the_reference_in_the_method_we_call_before_training() -> None:
    """Under autocast, as training does, and with DeepSpeed through an engine of the function that we take from TRL."""
    assert parameters(DPOTrainer.compute_ref_log_probs) == ["self", "model", "inputs"]
    assert "self.accelerator.autocast()" in inspect.getsource(DPOTrainer.compute_ref_log_probs)
    precompute = inspect.getsource(DPOTrainer._precompute_ref_logps)
    assert "prepare_deepspeed(self.model, self.accelerator)" in precompute
    assert all(f'"{name}"' in precompute for name in COLUMNS)
    assert "self.train_dataset = self._precompute_ref_logps(" in inspect.getsource(DPOTrainer.__init__)
