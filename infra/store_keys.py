"""What a key is: a relative POSIX path, so that a folder and a bucket agree on all of them."""


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: it could leave the store's folder, or has no one meaning as a path.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(
            f"a key is a relative path such as 'runs/demo/run.json', got {key!r}; "
            "leave out empty parts, '.' and '..'"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return a prefix of keys: the empty one, a key, or a key with a slash behind it."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def folder_prefix(prefix: str) -> str:
    """Return the prefix of all keys below a folder; the empty folder is the whole store."""
    return check_prefix(f"{prefix.removesuffix('/')}/" if prefix else "")
