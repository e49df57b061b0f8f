"""Finds operations in traced graphs. Changes no graph, and knows neither tasks nor feeds."""
