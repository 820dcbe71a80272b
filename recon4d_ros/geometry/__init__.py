"""Pure torch geometry: batched, any device, no configuration, no input or output."""
