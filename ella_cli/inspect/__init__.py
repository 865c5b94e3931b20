"""What pasts, adapters and runs hold. Every function gives frozen values of plain numbers.

    energy.energy_of(past)                 how much was moved, where, on how few coordinates
    spectrum.spectrum_of(past)             directions, and which tasks hold and share them
    overlap.overlap_of(adapter, past)      with which past task an update collides, and where
    bound.bounds_of(adapter, past, λs)     the interference bound beside what it bounds
    forgetting.forgetting_of(runs)         which of these foretold the accuracy lost
    origin.*_origin(path)                  what a file or folder is, in words
    difference.difference(a, b)            two pasts, or two adapters

All figures are in f64, module by module; memory is a few times the largest module.
"""
