"""Means and standard deviations of the columns of a training split."""

from torch import Tensor

from robustcert.data.dataset import Dataset, DatasetError, Stream, as_numbers, column_name


def standardisation(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every column or channel, over the training split.

    Raises:
        DatasetError: a column does not vary.
    """
    inputs = dataset.read("train").inputs
    if isinstance(inputs, Stream):
        raise DatasetError(
            f"{dataset.name}: is read batch by batch: set normalization.mean and .std"
        )
    inputs = as_rows(as_numbers(inputs, dataset.domain, dataset.columns))
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    constant = (inputs == inputs[0]).all(0).nonzero()
    if len(constant):
        raise DatasetError(
            f"{dataset.name}: {column_name(dataset.columns, int(constant[0]))} has one value in "
            "the whole training split and cannot be standardised: leave it out"
        )
    return mean.tolist(), std.tolist()


def as_rows(inputs: Tensor) -> Tensor:
    """Signals ``(N, C, T)`` as N T rows of C numbers, float64; rows of a table as they are."""
    return inputs.double().movedim(1, -1).flatten(0, -2)
