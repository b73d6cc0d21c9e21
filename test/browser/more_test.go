package browser

import "testing"

func TestD3_TerminalOutlastsOutputSizesAndCuts(t *testing.T) { alone(t, "terminal") }

func TestD3_FilesManyOddAndLarge(t *testing.T) { beside(t, "files") }

func TestDA01_LongListsAndChangesStayQuick(t *testing.T) { alone(t, "lists") }

func TestD1_HostileNamesStayText(t *testing.T) { beside(t, "hostile") }

func TestD1_FirstLoadIsSmallAndFromHereAlone(t *testing.T) { beside(t, "load") }

func TestD8_EveryPageInEachOfItsStates(t *testing.T) { beside(t, "states") }

func TestDA03_EveryPageAsEverybody(t *testing.T) { beside(t, "roles") }
