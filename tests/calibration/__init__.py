"""
What the cost model is calibrated on: points, the script that measures them, the measurements, the fit.

    python -m tests.calibration.measure --json OUT      # on a Hopper GPU
    python -m tests.calibration.fit [FILE ...]          # anywhere
"""
