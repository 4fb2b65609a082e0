"""Reading labels: random rows, images, and views streamed ahead."""
