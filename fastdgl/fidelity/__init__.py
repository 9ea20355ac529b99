"""How good generated images are: metrics of features that a detector sees in real images and in fakes, one file per metric."""
