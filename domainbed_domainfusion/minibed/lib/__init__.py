"""What the scripts share: splits and printing, loaders, records and queries over them."""
