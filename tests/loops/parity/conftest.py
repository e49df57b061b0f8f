"""Which of the parity cases run each time, and which only with `pytest -m matrix`.

The tests themselves are as they were written against Keras. Of cases that differ in one argument from another of the same test, one is left
here; each kind of data, layer, loss, metric, optimizer and argument keeps at least one.
"""

from __future__ import annotations

import pytest

WHOLE = None  # a test without parameters: another test has its case and one more
MATRIX = {
    "test_data.py": {
        "test_features_of_other_dtypes": ["int32", "bool"],
        "test_labels_of_several_dtypes": ["int8", "uint16", "float64"],
        "test_forms_of_arrays": ["a column of labels", "fortran order"],
    },
    "test_datasets.py": {
        "test_datasets": ["a dropped tail", "sample weights", "a seeded shuffle", "repeated", "repeated twice", "one batch"],
        "test_datasets_of_unknown_length": ["filtered", "one batch"],
        "test_validation_datasets": ["known", "shuffled, some steps", "arrays"],
    },
    "test_evaluate.py": {"test_evaluate": ["static batches"], "test_predict": ["50", "500"]},
    "test_harness.py": {"test_a_run_that_trains_differently_is_found": ["batch_size", "epochs"]},
    "test_layers.py": {
        "test_noise": ["dropout", "two dropouts", "seeded dropout"],
        "test_regularizers_and_constraints": ["l2"],
        "test_dtype_policies": ["mixed_bfloat16"],
    },
    "test_metrics.py": {
        "test_metrics": ["sign", "positive"],
        "test_metric_objects": ["one hot", "class index"],
        "test_metrics_of_a_validation": ["binary", "class index"],
    },
    "test_optimizers.py": {
        "test_schedules": ["exponential", "staircase", "polynomial", "inverse time", "restarts"],
        "test_settings_of_optimizers": [
            "momentum",
            "clipnorm",
            "clipvalue",
            "weight decay",
            "centered",
            "accumulation",
            "ema",
            "static loss scale",
        ],
    },
    "test_static_batch.py": {
        "test_training_and_validation_each_have_their_own_rule": [
            "static training, static validation",
            "ragged training, ragged validation",
        ]
    },
    "test_strings.py": {
        "test_losses": ["positive"],
        "test_optimizers": ["adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "sgd"],
    },
    "test_train_step.py": {
        "test_a_train_step_that_returns_other_keys": [WHOLE],
        "test_trackers_of_its_own_and_no_compiled_loss": [WHOLE],
    },
    "test_training.py": {
        "test_arguments_of_fit": [
            "class weights of some",
            "sample weights",
            "sample weights of zero",
            "validation data",
            "weighted validation split",
            "validation every 2 epochs",
            "validation never due",
            "validation batch size",
            "one epoch left",
            "steps per epoch, a whole pass",
            "steps per epoch, one of five",
            "ragged last batch",
            "ragged last batch of one",
            "one batch",
            "ragged training, static validation",
        ],
        "test_settings_of_compile": ["weighted metrics", "no metrics"],
        "test_sample_weights_of_several_outputs": ["one array for all outputs"],
    },
    "test_xla.py": {"test_xla_agrees_up_to_rounding": ["sgd-ragged tail", "adam and batch norm-static"]},
}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses among the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = {
        (file, test if case is WHOLE else f"{test}[{case}]")
        for file, tests in MATRIX.items()
        for test, cases in tests.items()
        for case in cases
    }
    for item in items:
        if item.path.parent.name == "parity" and (item.path.name, item.name) in wanted:
            item.add_marker("matrix")
