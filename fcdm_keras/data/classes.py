"""Names and numbers of classes. Standard library only.

Classes are numbered in the order of their names, so a class that is *named* `2` need not be class 2: of the folders
`0`, `1`, `10`, `2` it is class 3. A flag's plain numbers are the classes' numbers, never their names.
"""

import difflib

SHOWN = 8  # classes in a line of them


def number_of(name, class_names):
    """The number of the class with exactly this name. Raises ValueError, in one sentence, if there is not one."""
    if not class_names:
        raise ValueError(f"The classes of this model have no names: give their numbers. Received: {name!r}")
    numbers = [number for number, other in enumerate(class_names) if other == name]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise ValueError(
            f"{name!r} is the name of the classes {', '.join(map(str, numbers))}: give one number of them."
        )
    near = difflib.get_close_matches(name, class_names, 3) or class_names[:SHOWN]
    more = ", …" if len(class_names) > len(near) else ""
    raise ValueError(f"There is no class named {name!r}; there are {', '.join(map(repr, near))}{more}.")


def parse_classes(text, num_classes, class_names=None):
    """Numbers of the classes that a flag gives: `"0-2,7"` → `[0, 1, 2, 7]`, `"cat,dog"` → theirs; `None` is all.

    A name that holds a comma or looks like a range is a name first; a plain number is always a class's number.

    Raises:
        ValueError: for classes out of range, names that there are not, and other text.
    """
    if text is None:
        return list(range(num_classes))
    names = {",".join(_parts(name)): name for name in class_names or () if not name.isdecimal()}
    parts, classes = _parts(text), []
    while parts:
        taken = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in names), 0)
        if taken:
            classes.append(number_of(names[",".join(parts[:taken])], class_names))
        elif class_names and any(map(str.isalpha, parts[0])):
            classes.append(number_of(parts[0], class_names))  # which says what there is
        else:
            classes += _numbers(parts[0], text, num_classes)
        del parts[: taken or 1]
    return classes


def describe_classes(classes, class_names):
    """Which number is which class, in one line, of the first of these classes: `0 cat, 1 dog, …`."""
    listed = [f"{number} {class_names[number][:40]}" for number in sorted(set(classes))]
    line = ", ".join(listed[:SHOWN]) + (f", … {listed[-1]}" if len(listed) > SHOWN else "")
    other = next((n for n, name in enumerate(class_names) if name.isdecimal() and int(name) != n), None)
    if other is None:
        return line
    return f"{line} (numbered in the order of their names: class {other} is named {class_names[other]})"


def _numbers(part, text, num_classes):
    """`"0-2"` → 0, 1, 2."""
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
        raise ValueError(f"--classes must look like 0-9 or 207,360,387. Received: {text!r}")
    if int(last) >= num_classes:
        raise ValueError(f"--classes must lie in [0, {num_classes - 1}]. Received: {text!r}")
    return range(int(first), int(last) + 1)


def _parts(text):
    return [part.strip() for part in text.split(",")]
