"""What every implementation of the store must do, whatever database it uses."""
