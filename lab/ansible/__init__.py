"""What Ansible needs to provision a laboratory: inventory, connection, playbook and roles (docs/lab.md)."""
