"""Which of the parity cases run each time, and which only with `pytest -m matrix`.

The tests themselves are as they were written against Keras. Of cases that differ in one argument from another of the same test, one is left
here; each kind of data, layer, loss, metric, optimizer and argument keeps at least one.
"""

from __future__ import annotations

import pytest

MATRIX = {
    "test_data.py": {
        "test_features_of_other_dtypes": ["int32", "bool"],
        "test_labels_of_several_dtypes": ["uint16", "float64"],
        "test_forms_of_arrays": ["a column of labels", "fortran order"],
    },
    "test_datasets.py": {
        "test_datasets": ["a dropped tail", "repeated", "repeated twice", "one batch"],
        "test_datasets_of_unknown_length": ["filtered", "one batch"],
        "test_validation_datasets": ["known", "shuffled, some steps"],
    },
    "test_evaluate.py": {"test_evaluate": ["static batches"], "test_predict": ["50", "500"]},
    "test_harness.py": {"test_a_run_that_trains_differently_is_found": ["batch_size", "epochs"]},
    "test_layers.py": {
        "test_noise": ["two dropouts", "seeded dropout"],
        "test_regularizers_and_constraints": ["l2"],
        "test_dtype_policies": ["mixed_bfloat16"],
    },
    "test_metrics.py": {
        "test_metrics": ["sign", "positive"],
        "test_metric_objects": ["class index"],
        "test_metrics_of_a_validation": ["binary", "class index"],
    },
    "test_optimizers.py": {
        "test_schedules": ["staircase", "polynomial", "restarts"],
        "test_settings_of_optimizers": ["momentum", "clipvalue", "weight decay", "centered", "accumulation", "ema"],
    },
    "test_strings.py": {"test_losses": ["positive"], "test_optimizers": ["adadelta", "adagrad", "adamax", "nadam"]},
    "test_training.py": {
        "test_arguments_of_fit": [
            "class weights of some",
            "sample weights of zero",
            "weighted validation split",
            "validation never due",
            "one epoch left",
            "steps per epoch, a whole pass",
            "steps per epoch, one of five",
            "ragged last batch of one",
            "one batch",
        ],
    },
    "test_xla.py": {"test_xla_agrees_up_to_rounding": ["sgd-ragged tail", "adam and batch norm-static"]},
}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses among the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = {(file, f"{test}[{case}]") for file, tests in MATRIX.items() for test, cases in tests.items() for case in cases}
    for item in items:
        if item.path.parent.name == "parity" and (item.path.name, item.name) in wanted:
            item.add_marker("matrix")
