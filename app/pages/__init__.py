"""Reports as one HTML file each: no script, no request, readable in any browser and when printed."""
