"""Code that the scripts share: splits and printing, data loaders, records and queries over them."""
