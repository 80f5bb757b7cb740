"""What every room may use: time, text, settings, metrics, file locks and modes."""
