"""Ansible plugins, found by their folders (lab/ansible/ansible.cfg)."""
