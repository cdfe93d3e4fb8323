"""What happened: log lines, the access log, metrics. Knows neither half of the agent nor the messages between them."""
