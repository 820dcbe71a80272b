"""Which pixels show something that moves."""
