"""Settings that were renamed: the old name is refused with the new one, and still stands in the keys of stages.

A key holds the names that a field had when the first result was stored under it, so renaming a field leaves every
stored result where it is.
"""

# Settings class -> {name of the field now: its name in keys, which recipes had before}.
RENAMED_FIELDS: dict[str, dict[str, str]] = {}


def old_field_names(settings_class: type) -> dict[str, str]:
    """Returns {name now: old name} for the renamed fields of a settings class and of those it inherits from."""
    names: dict[str, str] = {}
    for parent in reversed(settings_class.__mro__):
        names |= RENAMED_FIELDS.get(parent.__name__, {})
    return names
