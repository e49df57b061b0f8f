"""Which of Keras's tests end differently under `loops`, and why; which of them every run of the suite tries."""

_OVERSHOOTS = (
    "With steps_per_epoch=5 and steps_per_execution=3 model.fit trains 6 steps an epoch, as it runs whole executions; loops.fit trains "
    "the 5 that were asked for. The test counts the executions that follow from 6."
)
_MULTI_EPOCH = "trainer_test_TestTrainer.test_steps_per_execution_steps_per_epoch_match_multi_epoch"

# A test that stands here and passes is a failure; so is one that fails and does not stand here.
EXPECTED: dict[str, str] = {f"{_MULTI_EPOCH}_{mode}": _OVERSHOOTS for mode in ("eager", "non_jit", "jit")}

# Part of a test's name -> a package that it imports and that need not be installed. Without it the test fails under Keras, too.
NEEDS = {"orbax_checkpoint_test": "orbax", "_jax_": "jax", "torch_dataloader": "torch", "grain_": "grain"}

# All others are for `pytest -m matrix`: several minutes.
SAMPLE = {
    "callback_test_CallbackTest.test_model_state_is_current_on_epoch_end",
    "early_stopping_test_EarlyStoppingTest.test_early_stopping_patience",
    "lambda_callback_test_LambdaCallbackTest.test_lambda_callback",
    "tensorboard_test_TestTensorBoardV2.test_custom_summary",
    "tf_dataset_adapter_test_TestTFDatasetAdapter.test_distributed_datasets_from_function_model_integration",
    f"{_MULTI_EPOCH}_non_jit",
    "trainer_test_TestTrainer.test_callback_methods_keys",
    "trainer_test_TestTrainer.test_callbacks_can_update_state_at_batch_boundary",
    "trainer_test_TestTrainer.test_fit_with_data_adapter_generator",
    "trainer_test_TestTrainer.test_fit_with_data_adapter_py_dataset_cw",
    "trainer_test_TestTrainer.test_steps_per_execution_steps_count_without_training",
    "trainer_test_TestTrainer.test_trainer_with_raggeds_model",
}
