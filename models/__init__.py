"""What a model is, and how one runs. Knows neither Ray nor a transport."""
