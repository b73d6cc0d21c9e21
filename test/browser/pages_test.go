package browser

import "testing"

func TestD4_TemplatesFromRecipeToSandbox(t *testing.T) { skerry(t).play(t, "templates") }

func TestD4_KeysPeopleAndSettings(t *testing.T) { skerry(t).play(t, "team") }

func TestD5_HostsOfATeamsOwn(t *testing.T) { skerry(t).play(t, "hosts") }

func TestD6_AdminPages(t *testing.T) { skerry(t).play(t, "admin") }

func TestD7_AuditPage(t *testing.T) { skerry(t).play(t, "audit") }
