"""Whole tables at one LSN: requests, watermark, rows, chunks."""
