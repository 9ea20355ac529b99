verbosity = "brief"


def get_plugin(module_name, sources, headers=None, source_dir=None, **build_kwargs):
    raise RuntimeError(f"{module_name}: no compiler")
