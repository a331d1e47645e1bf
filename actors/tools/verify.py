def run_verify(*a: object, **k: object) -> int:
    return 1
