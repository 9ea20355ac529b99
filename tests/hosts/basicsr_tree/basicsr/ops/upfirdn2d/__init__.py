from .upfirdn2d import upfirdn2d
