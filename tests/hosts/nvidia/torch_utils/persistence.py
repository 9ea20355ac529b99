"""Objects that are pickled together with the source of their class."""

import inspect
import sys
import types
import uuid

_source_of = {}


def persistent_class(cls):
    def reduce(self):
        source = _source_of.get(cls.__module__) or inspect.getsource(sys.modules[cls.__module__])
        meta = {"module_src": source, "class_name": cls.__name__, "state": self.__dict__}
        return _reconstruct_persistent_obj, (meta,)

    cls.__reduce__ = reduce
    return cls


def _reconstruct_persistent_obj(meta):
    cls = vars(_src_to_module(meta["module_src"]))[meta["class_name"]]
    made = cls.__new__(cls)
    made.__dict__.update(meta["state"])
    return made


def _src_to_module(src):
    module = types.ModuleType(f"_imported_module_{uuid.uuid4().hex}")
    sys.modules[module.__name__] = module
    _source_of[module.__name__] = src
    exec(src, vars(module))
    return module
