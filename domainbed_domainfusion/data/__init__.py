"""Datasets from folders environment/class/image: the benchmarks of the field, and your own.

`benchmarks` has the published sizes and `sources` the known archives; `getting` downloads one (`transfer`), unpacks it
(`archive`) and brings it into this layout (`arrangement`); `adding` makes a dataset of the host from a folder, or from
images that a `manifest` names, and `own_datasets` lets the host know it;
`layout` lists a folder as the host reads it; `picture` opens one image; `findings` says what is wrong with a dataset;
`samples` shows some of its images. May import: `hosting` and the ground floor.
"""
