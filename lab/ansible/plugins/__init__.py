"""Plugins of Ansible's, found by their folders (lab/ansible/ansible.cfg)."""
