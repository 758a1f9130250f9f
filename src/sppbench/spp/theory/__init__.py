"""What theory expects of signals at initialization."""
