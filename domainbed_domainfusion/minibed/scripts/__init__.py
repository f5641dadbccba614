"""The command lines: `train`, `sweep`, `collect_results`, `list_top_hparams`."""
