"""Knowledge transfer: teachers, distillation, locked towers."""
