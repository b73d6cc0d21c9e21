package browser

import "testing"

func TestD3_TerminalOutlastsOutputSizesAndCuts(t *testing.T) { skerry(t).play(t, "terminal") }

func TestD3_FilesManyOddAndLarge(t *testing.T) { skerry(t).play(t, "files") }

func TestDA01_LongListsAndChangesStayQuick(t *testing.T) { skerry(t).play(t, "lists") }

func TestD1_HostileNamesStayText(t *testing.T) { skerry(t).play(t, "hostile") }

func TestD1_FirstLoadIsSmallAndFromHereAlone(t *testing.T) { skerry(t).play(t, "load") }

func TestD8_EveryPageInEachOfItsStates(t *testing.T) { skerry(t).play(t, "states") }

func TestDA03_EveryPageAsEverybody(t *testing.T) { skerry(t).play(t, "roles") }
