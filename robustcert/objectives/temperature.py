"""The softmax temperature that every objective takes."""


def check_temperature(temperature: float) -> float:
    """The temperature, or ``ValueError`` if it is not above 0."""
    if not temperature > 0:
        raise ValueError(
            f"expected a temperature above 0, got {temperature}: set objective.temperature"
        )
    return temperature
