"""Phone screens drawn like those of real apps, with the truth about them."""
