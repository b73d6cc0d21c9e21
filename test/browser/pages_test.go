package browser

import "testing"

func TestD4_TemplatesFromRecipeToSandbox(t *testing.T) { beside(t, "templates") }

func TestD4_KeysPeopleAndSettings(t *testing.T) { beside(t, "team") }

func TestD5_HostsOfATeamsOwn(t *testing.T) { beside(t, "hosts") }

func TestD5_AMachineJoinsByTheCommandOfThePage(t *testing.T) { beside(t, "byoc") }

func TestD6_AdminPages(t *testing.T) { beside(t, "admin") }

func TestD7_AuditPage(t *testing.T) { beside(t, "audit") }
