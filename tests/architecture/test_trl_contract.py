"""The parts of TRL and transformers we lean on beyond documented constructors: a new version must not move them."""

import inspect
import re
from dataclasses import fields
from types import ModuleType

import pytest
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, GRPOTrainer, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer import dpo_trainer, reward_trainer, sft_trainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.reference_logps import COLUMNS
from qwen_align.align.training.whole_steps import WholeSteps


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


@pytest.mark.parametrize(
    ("module", "trainer", "n_heads"), [(sft_trainer, SFTTrainer, 1), (dpo_trainer, DPOTrainer, 2)], ids=["sft", "dpo"]
)
def test_heads_are_added_by_the_function_we_replace(module: ModuleType, trainer: type, n_heads: int) -> None:
    """To policy and reference, once each, when the trainer is built; and before it is prepared for autocast."""
    source = inspect.getsource(trainer.__init__)
    assert hasattr(module, "add_fused_lm_head")
    assert source.count("add_fused_lm_head(") == n_heads
    assert "accelerator.prepare_model" not in source.partition("add_fused_lm_head(")[0]
    assert parameters(add_fused_lm_head)[0] == "model"


def test_the_outputs_of_a_fused_head_are_those_that_ours_has() -> None:
    """TRL reads no other than these where its weighting by probability (WPO) is off."""
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1", "label_mask")
    assert {field.name for field in fields(FusedCausalLMOutput)} == {*outputs, "loss", "log_sum_sq_probs", "aux_loss"}
    assert 'outputs=("log_probs", "entropy", "is_top1")' in inspect.getsource(SFTTrainer.__init__)
    assert 'outputs = ("log_probs", "entropy", "mean_logits", "is_top1")' in inspect.getsource(DPOTrainer.__init__)
    assert "self.use_weighting:\n            outputs +=" in inspect.getsource(DPOTrainer.__init__)
    assert DPOConfig.use_weighting is False


@pytest.mark.parametrize(
    "collator",
    [
        sft_trainer.DataCollatorForLanguageModeling,
        dpo_trainer.DataCollatorForPreference,
        reward_trainer.DataCollatorForPreference,
    ],
)
def test_rows_are_padded_on_the_right(collator: type) -> None:
    """Packing takes a row's tokens to be its first."""
    source = inspect.getsource(collator)
    assert source.count("padding_side=") == source.count('padding_side="right"') >= 2


def test_sft_divides_a_sum_by_the_tokens_we_count_and_multiplies_it_by_the_processes() -> None:
    source = inspect.getsource(SFTTrainer.compute_loss)
    assert "loss = per_token_loss.sum() / torch.as_tensor(num_tokens).clamp(min=1)" in source
    assert "loss = loss * (self.accelerator.num_processes // self.get_tp_size())" in source
    assert SFTConfig.average_tokens_across_devices is True


def test_dpo_and_reward_losses_are_means_over_pairs() -> None:
    assert "loss += per_sequence_loss.mean() * loss_weight" in inspect.getsource(DPOTrainer._compute_loss)
    source = inspect.getsource(RewardTrainer.compute_loss)
    assert 'logsigmoid(rewards_chosen - rewards_rejected - inputs["margin"]).mean()' in source
    assert "logsigmoid(rewards_chosen - rewards_rejected).mean()" in source
    assert "torch.mean((rewards_chosen + rewards_rejected) ** 2)" in source


def test_a_step_is_what_transformers_gives_training_step_and_logs_what_it_returns() -> None:
    assert parameters(WholeSteps.training_step) == parameters(Trainer.training_step)
    assert parameters(WholeSteps.floating_point_ops) == parameters(Trainer.floating_point_ops)
    source = inspect.getsource(Trainer._run_epoch)
    assert "self.get_batch_samples(epoch_iterator, num_batches, self.args.device)" in source
    assert "tr_loss_step = self.training_step(model, inputs, num_items_in_batch)" in source
    assert "nested_gather(tr_loss, self.args.parallel_mode).mean()" in inspect.getsource(
        Trainer._maybe_log_save_evaluate
    )


@pytest.mark.parametrize("trainer", [SFTTrainer, DPOTrainer, RewardTrainer])
def test_metrics_are_lists_of_what_passes_gave(trainer: type) -> None:
    """So each pass's can be taken and weighed; and they are gathered by the two methods that we switch off."""
    source = inspect.getsource(trainer)
    assert "self._metrics[mode].clear()" in source
    assert "sum(val) / len(val) for key, val in self._metrics[mode].items()" in source
    gathering = set(re.findall(r"accelerator\.(gather\w*|reduce\w*|pad_across\w*)\(", source))
    assert gathering <= {"gather", "gather_for_metrics"}


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
