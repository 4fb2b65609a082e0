"""What a device needs: encoding there, memory, copies."""
